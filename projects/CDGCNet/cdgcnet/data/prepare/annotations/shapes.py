"""Annotated regions and how they become pixels.

Polygons are filled as the tool that they come from fills them: COCO's by pycocotools, the others by
Pillow, as labelme and cityscapesscripts do. Whatever lies outside the image is cut off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageDraw

from cdgcnet.data.decoding import MAX_PIXELS

Point = tuple[float, float]
_FARTHEST = 1_000_000  # pixels from the corner of an image
OVERLAPS = ("later", "earlier", "smaller", "larger")
Overlaps = Literal["later", "earlier", "smaller", "larger"]


class Region(Protocol):
    """A part of an image."""

    def mask(self, height: int, width: int) -> np.ndarray:
        """(height, width) bool.

        Raises:
            ValueError: if the region does not fit an image of this size.
        """


def _check_points(points: Sequence) -> None:
    """
    Raises:
        ValueError: for coordinates that are no numbers, or with which the libraries that fill
            polygons would crash.
    """
    try:
        coordinates = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a polygon has a point that is not of numbers ({error})") from error
    if not (np.abs(coordinates) <= _FARTHEST).all():
        raise ValueError(f"a polygon has a point that is not within {_FARTHEST} pixels")


def mask_of_runs(runs: Sequence[int], height: int, width: int) -> np.ndarray:
    """A mask (height, width) bool of run lengths, row by row; the first run is outside.

    Raises:
        ValueError: if the runs are not of so many pixels, or of too many.
    """
    whole = all(type(n) is int and n >= 0 for n in runs)
    if not whole or min(height, width) < 0 or sum(runs) != height * width:
        raise ValueError(f"run lengths do not add up to the {height * width} pixels of the mask")
    if height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {height} x {width} pixels; expected up to {MAX_PIXELS}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)


def _uncompressed(text: str) -> list[int]:
    """COCO's compressed run lengths: six bits a character, from the fourth on as differences.

    pycocotools leaves pixels undefined where they do not cover an image.

    Raises:
        ValueError: if it is not such a text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its run lengths are not readable")
        if bits & 0x20:  # more of this number follows
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


@dataclass(frozen=True)
class Polygon:
    """A filled polygon; ``outline`` also draws its edges, as labelme does."""

    points: Sequence[Point]
    outline: bool = True

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise ValueError(f"a polygon has {len(self.points)} points; expected 3 or more")
        _check_points(self.points)

    def mask(self, height: int, width: int) -> np.ndarray:
        image = Image.new("L", (width, height))
        points = [(float(x), float(y)) for x, y in self.points]
        ImageDraw.Draw(image).polygon(points, fill=1, outline=1 if self.outline else None)
        return np.asarray(image) > 0


def ellipse(center: Point, radii: Point, degrees: float = 0.0) -> Polygon:
    """An ellipse as a polygon of 180 points.

    Args:
        center: (x, y).
        radii: along its own x and y axis.
        degrees: rotation, clockwise on the screen.
    """
    angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    points = np.stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)])
    return Polygon(_placed(points, center, degrees))


def box(top_left: Point, bottom_right: Point, degrees: float = 0.0) -> Polygon:
    """A rectangle, turned clockwise about its center."""
    (x0, y0), (x1, y1) = top_left, bottom_right
    center = (x0 + x1) / 2, (y0 + y1) / 2
    corners = np.array([[x0, x1, x1, x0], [y0, y0, y1, y1]], np.float64) - np.array([center]).T
    return Polygon(_placed(corners, center, degrees))


def _placed(points: np.ndarray, center: Point, degrees: float) -> list[Point]:
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    placed = turn @ points + np.array([center]).T
    return [(float(x), float(y)) for x, y in placed.T]


@dataclass(frozen=True)
class CocoSegmentation:
    """COCO's "segmentation": polygons [[x, y, x, y, …], …], or run lengths {"counts", "size"}."""

    value: list | dict

    def mask(self, height: int, width: int) -> np.ndarray:
        value = self.value
        if isinstance(value, dict):
            counts, size = value.get("counts"), value.get("size")
            if size != [height, width]:
                raise ValueError(f"run lengths are for the size {size}, not {[height, width]}")
            if isinstance(counts, str):
                counts = _uncompressed(counts)
            if not isinstance(counts, list):
                raise ValueError('run lengths have no "counts"')
            return mask_of_runs(counts, width, height).T  # column by column
        from pycocotools import mask as coco

        for ring in value:
            if not isinstance(ring, list) or len(ring) < 6 or len(ring) % 2:
                raise ValueError("a polygon needs 3 or more points [x, y, x, y, x, y, …]")
            _check_points(ring)
        parts = coco.frPyObjects(value, height, width)
        return coco.decode(coco.merge(parts)).astype(bool)


@dataclass(frozen=True)
class Bitmap:
    """A mask (h, w) bool with its top left pixel at (left, top) of the image."""

    pixels: np.ndarray
    left: int
    top: int

    def mask(self, height: int, width: int) -> np.ndarray:
        whole = np.zeros((height, width), bool)
        y0, x0 = max(self.top, 0), max(self.left, 0)
        y1, x1 = max(height - self.top, 0), max(width - self.left, 0)
        part = self.pixels[y0 - self.top : y1, x0 - self.left : x1]
        whole[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part
        return whole


@dataclass(frozen=True)
class Shape:
    """A region with the name that the annotation file gives it.

    Attributes:
        name: of the class, in the words of the file.
        region: its pixels.
        layer: regions of a higher layer cover those of lower ones, whatever their order.
        ignored: its pixels become the ignore label.
    """

    name: str
    region: Region
    layer: int = 0
    ignored: bool = False


@dataclass(frozen=True)
class AnnotatedImage:
    """The shapes of one image, in the order of the file.

    Attributes:
        image: the file.
        stem: names the label, relative to the folder of labels.
        shapes: may be empty: then every pixel is unlabeled.
        size: (H, W) as the annotation file says, if it does.
    """

    image: Path
    stem: str
    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None


def draw_labels(
    shapes: Sequence[tuple[int, Shape]],
    height: int,
    width: int,
    unlabeled: int,
    overlaps: Overlaps,
) -> np.ndarray:
    """Draw shapes into a label map.

    Args:
        shapes: (label, shape) in the order of the file.
        height, width: of the image.
        unlabeled: the label of pixels outside all shapes.
        overlaps: which of two shapes of one layer shows where both are: the "later" or "earlier"
            one of the file, or the "smaller" or "larger" one by its number of pixels.

    Returns:
        (height, width) uint8.
    """
    order = list(shapes)
    if overlaps == "earlier":
        order.reverse()
    elif overlaps in ("smaller", "larger"):
        # An image may have hundreds of shapes. Their masks are drawn once more below, because all
        # of them together would take too much memory.
        areas = [int(np.count_nonzero(s.region.mask(height, width))) for _, s in shapes]
        sign = -1 if overlaps == "smaller" else 1
        order = [shapes[i] for i in sorted(range(len(shapes)), key=lambda i: sign * areas[i])]
    order.sort(key=lambda labeled: labeled[1].layer)  # stable: the order holds within a layer
    labels = np.full((height, width), unlabeled, np.uint8)
    for label, shape in order:
        labels[shape.region.mask(height, width)] = label
    return labels
