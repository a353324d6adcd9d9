"""Seeded street scenes: a pinhole camera looks down a street, painted far to near.

Everything is given in metres, so perspective, occlusion and thin far objects come by themselves.
Twelve Cityscapes classes occur: road, sidewalk, building, pole, traffic sign, vegetation, terrain,
sky, person, rider, car, bicycle.

The same seed gives the same bytes with the same numpy and cv2; another cv2 may move single pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from cdgcnet.data.synthetic.objects import SceneObject, draw_tree, plan_side, plan_traffic
from cdgcnet.data.synthetic.renderer import (
    BUILDING,
    CAR,
    EGO,
    PERSON,
    POLE,
    RIDER,
    ROAD,
    SIDEWALK,
    SIGN,
    SKY,
    SUPERSAMPLING,
    TERRAIN,
    VEGETATION,
    VOID,
    Array,
    Color,
    Renderer,
    disc,
    pick,
    rect,
    smooth_noise,
    stamp,
)

MIN_SIZE = 64  # pixels; a smaller scene has nothing left to recognize
FAR = 90.0  # metres; where the skyline closes the street
# sky at the zenith, sky at the horizon, color cast of the light, strength of cast shadows
DAYTIMES = (
    ((92, 142, 208), (190, 212, 232), (1.04, 1.02, 0.97), 0.50),
    ((150, 160, 172), (208, 212, 214), (0.90, 0.93, 0.97), 0.20),
    ((98, 108, 158), (236, 190, 150), (0.98, 0.90, 0.84), 0.40),
    ((120, 172, 220), (226, 226, 214), (1.08, 1.05, 0.98), 0.55),
    ((62, 76, 112), (130, 138, 158), (0.80, 0.83, 0.90), 0.25),
)
# Overlap on purpose: gray like the pavement, green like leaves, blue like the sky.
FACADES = ((150, 146, 142), (196, 180, 150), (160, 92, 76), (206, 198, 186), (104, 132, 92),
           (126, 158, 194), (118, 116, 118), (188, 150, 104), (134, 150, 108))  # fmt: skip
LAWNS = ((104, 128, 66), (138, 136, 84), (126, 106, 80), (92, 120, 58))
# per label id: grain, blotches, clumps, in gray levels (one standard deviation)
TEXTURES = {ROAD: (5, 5, 0), SIDEWALK: (5, 4, 2), BUILDING: (4, 4, 2), VEGETATION: (10, 5, 16),
            TERRAIN: (12, 8, 11), CAR: (2, 2, 0), PERSON: (4, 0, 3), RIDER: (4, 0, 3)}  # fmt: skip


def draw_scene(
    seed: int | Sequence[int], height: int = 160, width: int = 320
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one street scene; pure, and fixed by `seed` (non-negative integers).

    Returns the picture, (height, width, 3) uint8 RGB, and the Cityscapes label ids,
    (height, width) uint8. Objects scale with `height`; sizes are in pixels.
    Raises ValueError for a side below MIN_SIZE or a negative seed.
    """
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"a scene needs sides >= {MIN_SIZE} pixels, got {height} x {width}")
    rng = np.random.default_rng(seed)
    zenith, horizon, cast, shadow = DAYTIMES[
        rng.choice(len(DAYTIMES), p=[0.3, 0.25, 0.15, 0.2, 0.1])
    ]
    big_height, big_width = SUPERSAMPLING * height, SUPERSAMPLING * width
    renderer = Renderer(
        rng=rng,
        picture=np.zeros((big_height, big_width, 3), np.uint8),
        labels=np.full((big_height, big_width), SKY, np.uint8),
        focal=big_height * rng.uniform(1.7, 2.0),
        center=(big_width * rng.uniform(0.42, 0.58), big_height * rng.uniform(0.36, 0.50)),
        eye=rng.uniform(1.35, 1.75),
        bend=rng.normal(0, 0.0012),
        haze=np.array(horizon, np.float64),
        sun=rng.choice([-1, 1]),
    )
    _draw_sky(renderer, zenith, horizon)
    # The kerbs: the camera drives in its own lane, so the near one is on the right.
    sides = {-1: rng.uniform(3.6, 6.0), 1: rng.uniform(2.4, 4.2)}
    fronts = _draw_ground(renderer, sides)
    objects = [
        item for side in (-1, 1) for item in plan_side(renderer, side, sides[side], fronts[side])
    ]
    objects += plan_traffic(renderer, sides)
    objects.sort(key=lambda item: -item[0])
    _cast_shadows(renderer, objects, fronts, shadow)
    for side in (-1, 1):
        _draw_houses(renderer, side, fronts[side])
    for z, _, _, _, draw in objects:
        renderer.depth = z
        draw()
    return _develop(renderer, np.array(cast), height, width)


def _draw_sky(renderer: Renderer, zenith: Color, horizon: Color) -> None:
    """Paint a gradient with clouds over the whole picture."""
    height, width = renderer.labels.shape
    small = (height // 4, width // 4)  # nothing in a sky is sharp
    fade = np.clip(np.arange(small[0]) * 4 / renderer.center[1], 0, 1)[:, None, None]
    clouds = sum(smooth_noise(renderer.rng, small, 5 * k, 4 * k) / k for k in (1, 2, 4))
    cover = np.clip(clouds * 0.45 - renderer.rng.uniform(-0.1, 0.5), 0, 0.8)[..., None]
    sky = (np.asarray(zenith) * (1 - fade) + np.asarray(horizon) * fade) * (1 - cover) + 236 * cover
    renderer.picture[:] = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), (width, height))


def _draw_ground(renderer: Renderer, sides: dict[int, float]) -> dict[int, float]:
    """Paint the ground; return the distance of the house fronts from the middle, per side."""
    rng = renderer.rng
    asphalt = rng.uniform(82, 128) + np.array([0, 1, 4]) + rng.normal(0, 2, 3)
    paving = rng.choice([8, 30, 50]) + asphalt + rng.uniform(-6, 6) * np.array([1, 0.4, -0.6])
    mark = np.full(3, rng.uniform(190, 235))
    renderer.ground(-400, 400, 1, 900, pick(rng, LAWNS), TERRAIN)
    renderer.ground(-sides[-1], sides[1], 1, 900, asphalt, ROAD)
    fronts = {}
    for side, kerb in sides.items():
        strip, walk = rng.choice([0, rng.uniform(1.3, 2.8)], p=[0.35, 0.65]), rng.uniform(2.8, 4.8)
        first = kerb + strip * (rng.random() < 0.6)  # lawn next to the kerb or below the houses
        last = first + walk
        fronts[side] = kerb + strip + walk
        renderer.ground(side * (kerb - 0.35), side * kerb, 1, 900, asphalt * 0.86)  # the gutter
        renderer.ground(side * first, side * last, 1, 900, paving, SIDEWALK)
        renderer.ground(side * kerb, side * (kerb + 0.22), 1, 900, paving * 0.4 + 120, SIDEWALK)
        if rng.random() < 0.7:
            for z in np.arange(2.0, 30.0, rng.uniform(0.9, 1.8)):
                renderer.ground(side * (first + 0.22), side * last, z, z + 0.07, paving * 0.82)
        if rng.random() < 0.5:
            renderer.ground(side * (kerb - 0.55), side * (kerb - 0.4), 1, 900, mark)
    for _ in range(rng.integers(1, 5)):  # patched asphalt
        x, z = rng.uniform(-sides[-1], sides[1] - 1.5), rng.uniform(3, 25)
        renderer.ground(x, x + rng.uniform(0.4, 1.4), z, z * 1.25, asphalt * rng.uniform(0.82, 1.1))
    middle, start, dash = (sides[1] - sides[-1]) / 2, rng.uniform(1, 6), rng.uniform(2, 4)
    for z in np.arange(start, FAR, 2 * dash):
        renderer.ground(middle - 0.09, middle + 0.09, z, z + dash, mark)
    if rng.random() < 0.4:  # a zebra crossing
        z = rng.uniform(6, 16)
        for x in np.arange(-sides[-1] + 0.6, sides[1] - 0.5, 1.0):
            renderer.ground(x, x + 0.5, z, z + 2.6, mark)
    return fronts


def _cast_shadows(
    renderer: Renderer, objects: list[SceneObject], fronts: dict[int, float], depth: float
) -> None:
    """Darken the ground in one go, under every item and next to the houses away from the sun."""
    mask = np.zeros(renderer.labels.shape, np.uint8)
    front = renderer.sun * fronts[renderer.sun]
    reach = front - renderer.sun * renderer.rng.uniform(0.5, 6.0)
    edge = np.array(
        [[front, 1], [reach, 1], [reach, 20], [reach * 0.7 + front * 0.3, 21], [front, 60]]
    )
    stamp(mask, [renderer.project(edge[:, 0], 0.0, edge[:, 1])], 150)
    for z, x, half, length, _ in objects:
        pool = disc(x - renderer.sun * half * 0.5, z + length / 2, half * 1.6, length / 2 + 0.25)
        stamp(mask, [renderer.project(pool[:, 0], 0.0, pool[:, 1])], 255)
    mask[renderer.labels == SKY] = 0
    dark = cv2.blur(mask, (5, 5)).astype(np.float32) * ((0.25 + depth * 0.6) / 255)
    renderer.picture[:] = renderer.picture * (1 - dark[..., None])


def _draw_houses(renderer: Renderer, side: int, front: float) -> None:
    """Paint one side's row of houses and gardens, far to near, closed by a skyline."""
    rng = renderer.rng
    renderer.depth = FAR
    for x in np.arange(0, 70, 9.0):  # the skyline; overlaps the middle, hence both sides meet
        if rng.random() < 0.4:
            draw_tree(renderer, side * x, FAR, 2.4)
        else:
            box = rect(side * x - 1, -1, side * (x + 9), rng.uniform(3, 14))
            renderer.flat(0, FAR, box, pick(rng, FACADES), BUILDING)
    edges = [rng.uniform(3, 8)]
    while edges[-1] < FAR * 0.8:
        edges.append(edges[-1] + rng.uniform(6, 13))
    for near, end in zip(edges[-2::-1], edges[:0:-1], strict=True):
        renderer.depth = near
        if rng.random() < 0.22:  # a garden
            for z in np.linspace(end, near, 5):
                renderer.depth = z
                draw_tree(renderer, side * (front + rng.uniform(0.8, 4)), z, rng.uniform(0.35, 1.1))
            continue
        _draw_house(renderer, side, front + rng.choice([0.0, 0.6, 1.5]), near, end)


def _draw_house(renderer: Renderer, side: int, x: float, near: float, end: float) -> None:
    rng = renderer.rng
    floors, storey = int(rng.integers(2, 6)), rng.uniform(2.7, 3.3)
    tall, color = floors * storey + 0.4, pick(rng, FACADES)
    glass = pick(rng, ((58, 66, 78), (36, 38, 44), (120, 146, 174)), 6)
    frame = pick(rng, ((222, 220, 212), (52, 50, 50), (110, 108, 108)), 8)
    size, pitch = rng.uniform(0.42, 0.66), rng.uniform(1.7, 2.6)
    # First the gable, which shows where the next house is set back, then the wall along the street.
    for along, light in ((0, 0.92), (1, 0.78 if side == renderer.sun else 1.08)):
        span = end - near if along else 12.0
        left, row = np.meshgrid(np.arange(pitch * 0.3, span - pitch * 0.9, pitch), range(floors))
        door = (row == 0) & (rng.random(row.shape) < 0.2)
        low, top = (
            np.where(door, 0.05, row * storey + 0.9),
            row * storey + 0.9 + storey * size * 0.8,
        )
        right = left + pitch * size
        panes = np.stack([left, low, right, low, right, top, left, top], -1).reshape(-1, 4, 2)
        lit = rng.random(len(panes)) < 0.07
        glow = np.where(
            lit[:, None], (232, 206, 140), glass * rng.uniform(0.7, 1.25, (len(panes), 1))
        )
        pipe = rng.uniform(0.1, span - 0.2)  # as dark and thin as a pole, but house
        bands = [rect(0, -0.1, span, tall), rect(0, tall - 0.35, span, tall),
                 rect(0, 0, span, 0.6), rect(pipe, 0, pipe + 0.16, tall - 0.3)]  # fmt: skip
        inner = panes + np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * 0.1
        shapes = np.concatenate([bands, panes, inner])
        shades = np.outer((1, 0.7, 0.72, 0.55), color * light)
        colors = np.concatenate([shades, np.tile(frame * light, (len(panes), 1)), glow])
        across, up = shapes[..., 0], shapes[..., 1]
        out, ahead = (0.0, near + across) if along else (across, near)
        renderer.fill(renderer.project(side * (x + out), up, ahead), colors, BUILDING)


def _develop(renderer: Renderer, cast: Array, height: int, width: int) -> tuple[Array, Array]:
    """Add texture, light, blur and noise; scale down; mark what annotators leave out."""
    rng, shape = renderer.rng, renderer.labels.shape
    table = np.zeros((3, 256), np.float32)
    table[:, list(TEXTURES)] = np.transpose(list(TEXTURES.values()))
    grain = rng.standard_normal(shape, dtype=np.float32)
    blotches = smooth_noise(rng, shape, 24, 14)
    clumps = smooth_noise(rng, shape, shape[0] // 4, shape[1] // 4)
    texture = sum(
        cv2.LUT(renderer.labels, t) * n
        for t, n in zip(table, (grain, blotches, clumps), strict=True)
    )
    light = 1 + 0.12 * smooth_noise(rng, shape, 3, 3)
    left, right = rng.uniform(0.88, 1.12, 2)
    light *= np.linspace(left, right, shape[1], dtype=np.float32)
    picture = (renderer.picture + texture[..., None]) * light[..., None]
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 0.9))
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    picture *= (cast * rng.normal(1, 0.03, 3) * rng.uniform(0.85, 1.12)).astype(np.float32)

    labels = np.ascontiguousarray(renderer.labels[1::SUPERSAMPLING, 1::SUPERSAMPLING])
    kernel = np.ones((2, 2), np.uint8)
    border = cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)
    careless = smooth_noise(rng, labels.shape, 5, 8) > 0.9
    labels[border & careless & ~np.isin(labels, (POLE, SIGN))] = VOID
    if rng.random() < 0.35:  # the bonnet of the camera's own car
        hood = disc(width * rng.uniform(0.4, 0.6), height * 1.06, width * 0.5, height * 0.14, 40)
        stamp(labels, [hood], EGO)
        shine = np.linspace(1.5, 0.8, height)[:, None, None] * np.array([52, 54, 60])
        picture[labels == EGO] = np.broadcast_to(shine, picture.shape)[labels == EGO]
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(1.0, 3.0)
    return np.clip(picture, 0, 255).astype(np.uint8), labels
