"""The objects of a street scene: trees, poles, people, bicycles and cars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cdgcnet.data.synthetic.renderer import (
    BICYCLE,
    CAR,
    PERSON,
    POLE,
    RIDER,
    SIGN,
    VEGETATION,
    Renderer,
    bar,
    disc,
    pick,
    rect,
    stamp,
)

# z, x, half the width of the shadow, depth, and the function that draws it
SceneObject = tuple[float, float, float, float, Callable[[], None]]
PAINTS = ((184, 186, 190), (40, 42, 46), (156, 30, 34), (46, 82, 150), (54, 96, 62),
          (120, 122, 126), (226, 226, 222), (106, 150, 204), (190, 150, 60))  # fmt: skip
CLOTHES = ((38, 40, 48), (170, 40, 44), (48, 74, 134), (210, 206, 196), (206, 160, 50),
           (72, 104, 66), (122, 120, 124), (126, 66, 112), (224, 120, 60))  # fmt: skip
SKINS = ((232, 194, 166), (198, 150, 118), (138, 94, 70), (96, 66, 52))
HAIRS = ((46, 36, 30), (120, 90, 56), (30, 30, 32), (178, 176, 170))
LEAVES = ((64, 96, 44), (86, 112, 50), (52, 82, 52), (112, 116, 54))


def plan_side(renderer: Renderer, side: int, kerb: float, front: float) -> list[SceneObject]:
    """Choose the objects between the kerb and the house fronts of one side."""
    rng = renderer.rng
    objects: list[SceneObject] = []
    row = renderer.nearest(kerb + 0.5) + rng.uniform(0, 2.5)
    for z in np.arange(row, 36, rng.uniform(6, 11)):  # poles
        x = side * (kerb + rng.uniform(0.35, 0.6))
        objects.append(
            (z, x, 0.2, 0.2, partial(_draw_pole, renderer, x, z, side, rng.random() < 0.62))
        )
    if rng.random() < 0.6:
        for z in np.arange(row + 2, 50, rng.uniform(9, 16)):
            x = side * (front - rng.uniform(0.2, 0.8))
            draw = partial(draw_tree, renderer, x, z, rng.uniform(0.8, 1.2))
            objects.append((z, x, 1.4, 1.6, draw))
    for _ in range(rng.integers(1, 4)):
        x = side * rng.uniform(kerb + 0.6, front - 0.2)
        z = renderer.nearest(x) * rng.uniform(1, 1.6)
        objects.append((z, x, 0.3, 0.3, partial(_draw_person, renderer, x, z)))
    for _ in range(rng.integers(0, 3)):
        x = side * rng.uniform(kerb + 0.4, front - 0.4)
        z = renderer.nearest(x) * rng.uniform(1, 1.5)
        objects.append((z, x, 0.6, 0.3, partial(_draw_bicycle, renderer, x, z, False)))
    if rng.random() < 0.6:  # parked cars
        for z in np.arange(renderer.nearest(kerb) + rng.uniform(1, 8), 45, 5.4):
            if rng.random() < 0.6:
                x = side * (kerb - 1.05)
                objects.append((z, x, 1.0, 4.2, partial(_draw_car, renderer, x, z, side > 0)))
    return objects


def plan_traffic(renderer: Renderer, sides: dict[int, float]) -> list[SceneObject]:
    """Choose what drives, rides and walks on the road."""
    rng = renderer.rng
    objects: list[SceneObject] = []
    for x, least, most in ((-sides[-1] * 0.45, 1, 3), (0.0, 0, 1)):
        for z in rng.uniform(10, 30, rng.integers(least, most + 1)):
            objects.append((z, x, 1.0, 4.2, partial(_draw_car, renderer, x, z, x >= 0)))
    if rng.random() < 0.3:
        x, z = rng.uniform(-6, 6), rng.uniform(12, 26)
        objects.append((z, x, 2.1, 1.8, partial(_draw_crossing_car, renderer, x, z)))
    for _ in range(rng.integers(1, 4)):
        x = rng.uniform(-sides[-1] + 0.5, sides[1] - 0.4)
        z = max(renderer.nearest(x), 8) * rng.uniform(1, 1.7)
        objects.append((z, x, 0.6, 0.3, partial(_draw_bicycle, renderer, x, z, True)))
    for _ in range(rng.integers(0, 3)):
        x, z = rng.uniform(-sides[-1], sides[1]), rng.uniform(8, 18)
        objects.append((z, x, 0.3, 0.3, partial(_draw_person, renderer, x, z)))
    return objects


def draw_tree(renderer: Renderer, x: float, z: float, scale: float) -> None:
    """Paint a tree, or below a scale of 0.8 a bush."""
    rng, count = renderer.rng, 54 if z < 30 else 26
    stem = rng.uniform(1.6, 2.6) * scale if scale > 0.8 else 0.3  # or a bush
    leaf, bark = pick(rng, LEAVES, 8), pick(rng, ((92, 74, 58), (110, 104, 98)), 8)
    renderer.flat(x, z, bar(0, 0, 0, stem + scale, 0.30 * scale), bark, VEGETATION)
    wide, high = rng.uniform(1.4, 2.2) * scale, rng.uniform(1.2, 1.9) * scale
    up = np.sort(rng.uniform(-1, 1, count))
    out = np.sqrt(1 - up * up) * rng.uniform(-1, 1, count)
    places = np.stack([out * wide, stem + high * (1 + up)], -1)
    radii = rng.uniform(0.2, 0.44, (count, 1, 2)) * scale
    light = 0.95 + 0.25 * up - 0.12 * out * renderer.sun + rng.normal(0, 0.14, count)
    renderer.flat(
        x, z, places[:, None] + radii * disc(0, 0, 1, 1, 7), np.outer(light, leaf), VEGETATION
    )


def _draw_pole(renderer: Renderer, x: float, z: float, side: int, sign: bool) -> None:
    """Paint a sign post, or a street lamp."""
    rng = renderer.rng
    thick, tall = rng.uniform(0.2, 0.3), rng.uniform(2.7, 3.4) if sign else rng.uniform(4.5, 7.5)
    gray = pick(rng, ((118, 120, 122), (66, 68, 70), (150, 150, 148), (70, 84, 74)), 6)
    renderer.flat(x, z, rect(-thick / 2, -0.05, thick / 2, tall), gray, POLE)
    renderer.flat(x, z, rect(-thick / 4, 0, thick / 6, tall), gray * 1.25)
    if sign:
        for top in (tall, tall - 0.95)[: 1 + (rng.random() < 0.4)]:
            _draw_sign(renderer, x, top, z)
    elif rng.random() < 0.75:  # a street lamp
        renderer.flat(x, z, bar(0, tall, -side * 1.3, tall + 0.2, thick * 0.8), gray, POLE)
        renderer.flat(x, z, disc(-side * 1.5, tall + 0.15, 0.42, 0.16), gray * 1.2, POLE)


def _draw_sign(renderer: Renderer, x: float, y: float, z: float) -> None:
    rng = renderer.rng
    red, blue, white, dark = (192, 30, 36), (30, 78, 168), (232, 232, 228), (34, 34, 36)
    r, kind = rng.uniform(0.42, 0.56), rng.integers(7)
    corners = (24, 3, 8, 4, 24, 4, 4)[kind]
    ring, face, glyph = ((red, white, dark), (red, white, dark), (red, red, white),
                         (white, (234, 190, 40), dark), (blue, blue, white), (blue, blue, white),
                         (dark, (236, 206, 60), dark))[kind]  # fmt: skip
    shape = disc(0, 0, r, r, corners)
    if kind == 1:
        shape = np.array([[-1, -0.75], [1, -0.75], [0, 0.95]]) * r
    elif kind == 3:
        shape = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]]) * r
    elif kind == 6:  # a direction board
        shape = rect(-1.7, -0.55, 1.7, 0.55) * r
    if rng.random() < 0.12:  # seen from behind
        ring = face = glyph = (142, 144, 146)
    plates = np.stack([shape, shape * 0.72]) + np.array([0, y])
    renderer.flat(x, z, plates, np.array([ring, face]) + rng.normal(0, 8, (2, 3)), SIGN)
    renderer.flat(x, z, bar(-0.3 * r, y, 0.3 * r, y + rng.uniform(-0.2, 0.2), 0.3 * r), glyph)


def _draw_torso(
    renderer: Renderer, x: float, z: float, hip: float, size: float, label: int
) -> None:
    """Paint a body from the hip up, for persons and riders alike."""
    rng = renderer.rng
    coat, lean = pick(rng, CLOTHES, 12), rng.uniform(-0.14, 0.14)
    wide, shoulder, elbow = (
        rng.uniform(0.20, 0.28) * size,
        hip + 0.55 * size,
        rng.uniform(-0.2, 0.2),
    )
    arms = [bar(lean + arm * wide, shoulder, arm * (wide + 0.05) + elbow, hip - 0.02, 0.13)
            for arm in (-1, 1)]  # fmt: skip
    renderer.flat(x, z, np.array(arms), [coat * 0.8] * 2, label)
    trunk = [[-wide * 0.8, hip - 0.1], [wide * 0.8, hip - 0.1], [lean + wide, shoulder],
             [lean + wide * 0.6, shoulder + 0.07], [lean - wide * 0.6, shoulder + 0.07],
             [lean - wide, shoulder]]  # fmt: skip
    renderer.flat(x, z, np.array(trunk), coat, label)
    if rng.random() < 0.3:  # a bag or an open coat
        renderer.flat(x, z, bar(lean, shoulder, 0, hip, 0.14), pick(rng, CLOTHES))
    face = disc(0, 0, 0.12, 0.155, 10) * size + (lean * 1.3, shoulder + 0.23 * size)
    hair = face * (1, 0.55) + (0, 0.45 * face[:, 1].max())
    renderer.flat(x, z, np.array([face, hair]), [pick(rng, SKINS, 6), pick(rng, HAIRS, 8)], label)


def _draw_legs(
    renderer: Renderer, x: float, z: float, hip: float, feet: Sequence[Any], label: int
) -> None:
    cloth = pick(renderer.rng, CLOTHES) * 0.7
    for foot, low in feet:
        knee, rise = foot * 0.55, (low + hip) / 2
        parts = [bar(0.03, hip, knee, rise, 0.19), bar(knee, rise + 0.05, foot, low, 0.16),
                 rect(foot - 0.1, low - 0.06, foot + 0.14, low + 0.05)]  # fmt: skip
        renderer.flat(x, z, np.array(parts), np.outer((1, 0.92, 0.4), cloth), label)


def _draw_person(renderer: Renderer, x: float, z: float) -> None:
    """Paint a walking person."""
    size, step = renderer.rng.uniform(0.9, 1.1), renderer.rng.uniform(0.05, 0.36)
    _draw_legs(renderer, x, z, 0.9 * size, ((-step, 0.05), (step, 0.05)), PERSON)
    _draw_torso(renderer, x, z, 0.9 * size, size, PERSON)


def _draw_bicycle(renderer: Renderer, x: float, z: float, ridden: bool) -> None:
    """Paint a parked bicycle, or one with its rider."""
    rng = renderer.rng
    turn = rng.choice([-1, 1]) * rng.uniform(0.45, 1.0)  # seen from behind .. from the side
    squeeze, paint = (turn, 1), pick(rng, PAINTS, 12)
    spokes = [bar(-0.3 * c, -0.3 * s, 0.3 * c, 0.3 * s, 0.03) for c, s in disc(0, 0, 1, 1, 8)[:4]]
    for hub in ((-0.54, 0.35), (0.54, 0.35)):
        tyre, core = ((disc(*hub, r, r, 18)) * squeeze for r in (0.35, 0.27))
        renderer.flat(x, z, tyre, None, BICYCLE)  # the annotators fill the wheels, so do we
        stamp(renderer.picture, [renderer.at(x, z, tyre), renderer.at(x, z, core)], (34, 34, 36))
        renderer.flat(x, z, (np.array(spokes) + hub) * squeeze, [(98, 100, 102)] * 4)
    seat, crank, fork = (-0.2, 0.88), (0, 0.34), (0.4, 0.86)
    rear, front = (-0.54, 0.35), (0.54, 0.35)
    renderer.flat(x, z, np.array([seat, crank, fork]) * squeeze, None, BICYCLE)
    tubes = [(*seat, *crank), (*crank, *fork), (*seat, *fork), (*rear, *seat), (*rear, *crank),
             (*fork, *front), (*fork, 0.34, 1.02),
             (-0.34, 0.92, -0.08, 0.92), (0.2, 1.03, 0.42, 1.05)]  # fmt: skip
    colors = np.array([paint] * 7 + [np.array([34, 32, 32])] * 2)
    bars = [bar(a * turn, b, c * turn, d, 0.07) for a, b, c, d in tubes]
    renderer.flat(x, z, np.array(bars), colors, BICYCLE)
    if ridden:
        size, pedal = rng.uniform(0.9, 1.1), rng.uniform(0.2, 0.45)
        feet = ((0.16 * turn, pedal), (-0.12 * turn, 0.65 - pedal))
        _draw_legs(renderer, x - 0.16 * turn, z, 0.98, feet, RIDER)
        _draw_torso(renderer, x - 0.14 * turn, z, 0.98, size, RIDER)


def _draw_car(renderer: Renderer, x: float, z: float, rear: bool) -> None:
    """Paint a car parked along the street: its box, seen from one end and one side."""
    rng = renderer.rng
    paint, long = pick(rng, PAINTS, 12), rng.uniform(3.7, 4.5)
    waist, roof, half = rng.uniform(0.86, 0.98), rng.uniform(1.42, 1.75), rng.uniform(0.84, 0.94)
    glass, flank = np.array([46, 54, 64]) * rng.uniform(0.7, 1.5), -np.sign(x) * half
    light, low = (0.78 if np.sign(flank) != renderer.sun else 1.06), roof - 0.1
    # The flank, in (metres behind the near end, height): body, cabin and window, wheels and hubs.
    boxes = [rect(0, 0.28, long, waist),
             [[0.2, waist], [0.7, roof], [long * 0.6, roof], [long * 0.78, waist]],
             [[0.45, waist], [0.8, low], [long * 0.56, low], [long * 0.7, waist]]]  # fmt: skip
    wheels = [disc(hub, 0.33, r, r) for hub in (0.75, long - 0.85) for r in (0.34, 0.17)]
    dark, tin = np.array([26, 26, 28]), np.array([150, 152, 154])
    for shapes, colors in (
        (boxes, [paint * light, paint * light, glass]),
        (wheels, [dark, tin] * 2),
    ):
        along, up = np.moveaxis(np.array(shapes), -1, 0)
        outer = x + flank * (1 - 0.11 * (up > waist + 0.1))
        renderer.fill(renderer.project(outer, up, z + along), colors, CAR)
    top = [[-half, waist], [half, waist], [half * 0.84, roof], [-half * 0.84, roof]]
    pane = np.array(top) * (0.86, 0.78) + (0, waist * 0.22 + 0.04)
    lamp = np.array((184, 24, 28) if rear else (244, 240, 214))
    parts = [(rect(-half, 0, 0.24 - half, 0.4), dark), (rect(half - 0.24, 0, half, 0.4), dark),
             (rect(-half, 0.26, half, waist), paint * 0.92), (top, paint * 0.95), (pane, glass),
             (rect(-half, 0.26, half, 0.42), paint * 0.5),
             (rect(-0.26, 0.46, 0.26, 0.58), tin * 1.5),
             (rect(-half, 0.64, 0.3 - half, waist - 0.06), lamp),
             (rect(half - 0.3, 0.64, half, waist - 0.06), lamp)]  # fmt: skip
    renderer.flat(x, z, np.array([p for p, _ in parts]), np.array([c for _, c in parts]), CAR)


def _draw_crossing_car(renderer: Renderer, x: float, z: float) -> None:
    """Paint a car from its side."""
    rng = renderer.rng
    paint, way, roof = pick(rng, PAINTS, 12), (rng.choice([-1, 1]), 1), rng.uniform(1.4, 1.7)
    body = [[-2.1, 0.28], [2.1, 0.28], [2.1, 0.78], [1.2, 0.92], [0.6, roof], [-1.3, roof],
            [-1.9, 0.95]]  # fmt: skip
    panes = [[[-1.6, 0.95], [-0.4, 0.95], [-0.4, roof - 0.1], [-1.2, roof - 0.1]],
             [[-0.28, 0.95], [0.98, 0.95], [0.5, roof - 0.1], [-0.28, roof - 0.1]],
             rect(-2.1, 0.28, 2.1, 0.42)]  # fmt: skip
    glass = np.array([46, 54, 64]) * rng.uniform(0.7, 1.5)
    renderer.flat(x, z, np.array(body) * way, paint, CAR)
    renderer.flat(x, z, np.array(panes) * way, [glass, glass, paint * 0.6])
    wheels = [disc(hub, 0.34, r, r) for hub in (-1.3, 1.3) for r in (0.34, 0.18)]
    renderer.flat(x, z, np.array(wheels), [(26, 26, 28), (150, 152, 154)] * 2, CAR)
