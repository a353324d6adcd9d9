"""The canvases, camera and brushes that a street scene is painted with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Color = ArrayLike  # RGB, 0..255
SUPERSAMPLING = 2
VOID, EGO, ROAD, SIDEWALK, BUILDING, POLE, SIGN = 0, 1, 7, 8, 11, 17, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER, CAR, BICYCLE = 21, 22, 23, 24, 25, 26, 33


def rect(x0: float, y0: float, x1: float, y1: float) -> Array:
    """Return the corners, (4, 2), of an upright box."""
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def bar(ax: float, ay: float, bx: float, by: float, width: float) -> Array:
    """Return the corners, (4, 2), of a bar of that width from a to b."""
    dx, dy = np.array([by - ay, ax - bx]) * (width / 2 / max(np.hypot(bx - ax, by - ay), 1e-6))
    return np.array(
        [[ax + dx, ay + dy], [bx + dx, by + dy], [bx - dx, by - dy], [ax - dx, ay - dy]]
    )


def disc(x: float, y: float, rx: float, ry: float, corners: int = 16) -> Array:
    """Return an ellipse as a polygon, (corners, 2)."""
    turn = np.arange(corners) * (2 * np.pi / corners) + np.pi / corners
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=-1)


def _fixed(points: Array) -> NDArray[np.int32]:
    # Four bits of fraction for cv2; far outside, where they would overflow, points may move.
    return (np.maximum(np.minimum(points, 1e5), -1e5) * 16).astype(np.int32)


def stamp(canvas: Array, contours: list[Array], value: Any) -> None:
    """Fill contours, each (K, 2) pixels, on a canvas; even-odd, so that two make a ring."""
    cv2.fillPoly(canvas, [_fixed(c) for c in contours], value, shift=4)


def pick(rng: np.random.Generator, colors: Sequence[Color], spread: float = 10) -> Array:
    """Draw one of the colors and vary it; (3,) float RGB."""
    return np.asarray(colors[int(rng.integers(len(colors)))]) + rng.normal(0, spread, 3)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], rows: int, cols: int) -> Array:
    """Return smooth noise, `shape` float32, spread over rows x cols independent normal knots."""
    noise = rng.standard_normal((rows, cols), dtype=np.float32)
    return cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_CUBIC)


@dataclass
class Renderer:
    """One scene's canvases and camera; x is right, y up from the ground, z ahead, in metres."""

    rng: np.random.Generator
    picture: Array  # (h, w, 3) uint8 RGB, supersampled
    labels: Array  # (h, w) uint8
    focal: float  # pixels
    center: tuple[float, float]  # column and row of the vanishing point
    eye: float  # metres above the ground
    bend: float  # the street's curvature, 1 / metres
    haze: Array
    sun: int  # the side the light comes from
    depth: float = 0.0  # of what is being painted; the farther, the hazier

    def project(self, x: Any, y: Any, z: Any) -> Array:
        """Return the pixels, (..., 2), of points in the world; sizes broadcast."""
        column = self.center[0] + self.focal * (x / z + self.bend * z) + 0 * y
        row = self.center[1] + self.focal * (self.eye - y) / z + 0 * x
        return np.stack([column, row], axis=-1)

    def at(self, x: float, z: float, points: Array) -> Array:
        """Return the pixels of points, (..., 2) metres, on an upright board at (x, z)."""
        scale = self.focal / z
        origin = (
            self.center[0] + self.focal * (x / z + self.bend * z),
            self.center[1] + scale * self.eye,
        )
        return points * (scale, -scale) + origin

    def nearest(self, x: float) -> float:
        """Return the least distance at which something at x is well inside the picture."""
        half = min(self.center[0], self.labels.shape[1] - self.center[0])
        return max(5.5, 1.1 * self.focal * abs(x) / half)

    def fill(self, shapes: Array, colors: Any, label: int | None = None) -> None:
        """Paint outlines, (..., K, 2) pixels, in one color or one each, and in a label.

        None for the colors or the label leaves that canvas alone.
        """
        fixed = _fixed(shapes.reshape(-1, *shapes.shape[-2:]))
        if colors is not None:
            clear = math.exp(-self.depth / 160)
            mixed = np.asarray(colors).reshape(-1, 3) * clear + self.haze * (1 - clear)
            for outline, color in zip(fixed, mixed.clip(0, 255).tolist(), strict=False):
                cv2.fillPoly(self.picture, [outline], color, shift=4)
        if label is not None:
            for outline in fixed:
                cv2.fillPoly(self.labels, [outline], label, shift=4)

    def flat(
        self, x: float, z: float, points: Array, colors: Any, label: int | None = None
    ) -> None:
        """Paint an upright board at (x, z), its outlines in metres around (x, ground)."""
        self.fill(self.at(x, z, points), colors, label)

    def ground(
        self, x0: float, x1: float, z0: float, z1: float, color: Color, label: int | None = None
    ) -> None:
        """Paint a stripe of the ground; long ones in pieces, for the bend."""
        z = np.geomspace(z0, z1, 24 if z1 > 4 * z0 else 2)
        edge = np.concatenate([self.project(x0, 0.0, z), self.project(x1, 0.0, z[::-1])])
        self.fill(edge, color, label)
