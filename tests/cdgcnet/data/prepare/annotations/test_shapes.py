"""Regions as pixels: equal to the tools that they come from, cut at the image's edge, in order."""

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from cdgcnet.data.prepare.annotations.shapes import (
    OVERLAPS,
    Bitmap,
    CocoSegmentation,
    Polygon,
    Shape,
    box,
    draw_labels,
    ellipse,
    mask_of_runs,
)

HEIGHT, WIDTH = 11, 17
coordinate = st.floats(-8, 25, allow_nan=False)  # inside and outside
rings = st.lists(coordinate, min_size=6, max_size=12).map(lambda ring: ring[: len(ring) // 2 * 2])


def official(segmentation) -> np.ndarray:
    """What pycocotools makes of an annotation."""
    coco = COCO()
    coco.imgs = {1: {"id": 1, "height": HEIGHT, "width": WIDTH}}
    return coco.annToMask({"image_id": 1, "segmentation": segmentation}).astype(bool)


@given(st.lists(rings, min_size=1, max_size=3))
def test_coco_polygons_equal_ann_to_mask(segmentation):
    found = CocoSegmentation(segmentation).mask(HEIGHT, WIDTH)
    np.testing.assert_array_equal(found, official(segmentation))


@given(st.integers(0, 2**31))
def test_coco_run_lengths_equal_ann_to_mask(seed):
    # Holes included: run lengths know nothing of inside and outside.
    pixels = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.5
    packed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    flat = pixels.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    plain = {"counts": [0, *counts] if flat[0] else counts, "size": [HEIGHT, WIDTH]}
    text = {"counts": packed["counts"].decode(), "size": packed["size"]}
    for segmentation in (plain, text):
        found = CocoSegmentation(json.loads(json.dumps(segmentation))).mask(HEIGHT, WIDTH)
        np.testing.assert_array_equal(found, pixels)
        np.testing.assert_array_equal(found, official(segmentation))


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"counts": [5], "size": [HEIGHT, WIDTH]}, "do not add up to the 187 pixels"),
        ({"counts": [-1, HEIGHT * WIDTH + 1], "size": [HEIGHT, WIDTH]}, "do not add up"),
        ({"counts": "", "size": [HEIGHT, WIDTH]}, "do not add up"),
        ({"counts": "o" * 20, "size": [HEIGHT, WIDTH]}, "not readable"),
        ({"counts": "é", "size": [HEIGHT, WIDTH]}, "not readable"),
        ([[0, 0, 5, 5, {}, 1]], "not of numbers"),
        ([[0, 0, 5, 5, 10**400, 1]], "not of numbers"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "not within 1000000 pixels"),  # pycocotools would crash
        ({"counts": [9], "size": [3, 3]}, r"are for the size \[3, 3\], not \[11, 17\]"),
        ({"size": [HEIGHT, WIDTH]}, 'no "counts"'),
        ([[0, 0, 5, 5]], "3 or more points"),  # pycocotools would take it for a box
        ([[0, 0, 5, 5, float("nan"), 1]], "not within 1000000 pixels"),
    ],
)
def test_bad_coco_segmentations(segmentation, words):
    with pytest.raises(ValueError, match=words):
        CocoSegmentation(segmentation).mask(HEIGHT, WIDTH)


@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8))
def test_polygons_are_filled_as_labelme_and_cityscapesscripts_do(points):
    for outline in (True, False):
        image = Image.new("L", (WIDTH, HEIGHT), 0)
        ImageDraw.Draw(image).polygon(points, fill=1, outline=1 if outline else None)
        found = Polygon(points, outline).mask(HEIGHT, WIDTH)
        np.testing.assert_array_equal(found, np.asarray(image) == 1)


def test_run_lengths_of_more_pixels_than_an_image_has():
    with pytest.raises(ValueError, match="100000 x 100000 pixels; expected up to"):
        mask_of_runs([10**10], 100_000, 100_000)


def test_a_polygon_that_covers_everything_and_one_outside():
    assert Polygon([(-50, -50), (90, -50), (90, 90), (-50, 90)]).mask(HEIGHT, WIDTH).all()
    assert not Polygon([(30, 30), (40, 30), (40, 40)]).mask(HEIGHT, WIDTH).any()


def test_turned_box_and_ellipse():
    # Turned by 90 degrees about (8, 5), the box of 9 x 3 pixels is upright.
    upright = box((4, 4), (12, 6), 90).mask(HEIGHT, WIDTH)
    np.testing.assert_array_equal(upright, box((7, 1), (9, 9)).mask(HEIGHT, WIDTH))
    # An ellipse that reaches 5 pixels up and down, 2 to the left and right of its center.
    rows, columns = np.nonzero(ellipse((8, 5), (5, 2), 90).mask(HEIGHT, WIDTH))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 10, 6, 10)


@given(st.integers(-4, 8), st.integers(-4, 8))
def test_a_bitmap_is_cut_at_the_edges(left, top):
    found = Bitmap(np.ones((3, 2), bool), left, top).mask(5, 6)
    for y in range(5):
        for x in range(6):
            assert found[y, x] == (top <= y < top + 3 and left <= x < left + 2)


# ---------------------------------------------------------------- overlaps

SMALL = Shape("s", Bitmap(np.ones((1, 2), bool), 1, 0))
LARGE = Shape("l", Bitmap(np.ones((1, 3), bool), 0, 0))


@pytest.mark.parametrize(
    ("overlaps", "expected"),
    [
        ("later", [2, 2, 2, 9]),
        ("earlier", [2, 1, 1, 9]),
        ("smaller", [2, 1, 1, 9]),
        ("larger", [2, 2, 2, 9]),
    ],
)
def test_overlaps(overlaps, expected):
    labels = draw_labels([(1, SMALL), (2, LARGE)], 1, 4, 9, overlaps)
    assert labels.tolist() == [expected] and labels.dtype == np.uint8


@pytest.mark.parametrize("overlaps", OVERLAPS)
def test_layers_come_before_every_order(overlaps):
    above = Shape("l", LARGE.region, layer=1)
    assert draw_labels([(2, above), (1, SMALL)], 1, 4, 9, overlaps).tolist() == [[2, 2, 2, 9]]


placed = st.tuples(*(st.integers(*bounds) for bounds in ((0, 5), (0, 5), (1, 4), (1, 4), (0, 1))))


@given(st.lists(placed, max_size=8), st.sampled_from(OVERLAPS))
def test_every_pixel_shows_the_shape_that_comes_first_there(boxes, overlaps):
    shapes = [
        Shape("s", Bitmap(np.ones((height, width), bool), left, top), layer)
        for left, top, height, width, layer in boxes
    ]
    expected = np.full((6, 6), 99)
    areas = [int(shape.region.mask(6, 6).sum()) for shape in shapes]
    # The last one of this order is on top. Of two shapes of one area it is the later one.
    key = {
        "later": lambda i: i,
        "earlier": lambda i: -i,
        "smaller": lambda i: (-areas[i], i),
        "larger": lambda i: (areas[i], i),
    }[overlaps]
    for y in range(6):
        for x in range(6):
            there = [i for i, shape in enumerate(shapes) if shape.region.mask(6, 6)[y, x]]
            if there:
                expected[y, x] = max(there, key=lambda i: (shapes[i].layer, key(i)))
    found = draw_labels(list(enumerate(shapes)), 6, 6, 99, overlaps)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("overlaps", OVERLAPS)
def test_masks_of_many_shapes_are_not_in_memory_at_once(overlaps):
    square = Polygon([(0, 0), (300, 0), (300, 300), (0, 300)])
    shapes = [(i % 20, Shape("s", square)) for i in range(100)]
    tracemalloc.start()
    try:
        draw_labels(shapes, 400, 400, 99, overlaps)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * 400 * 400  # ten masks; each takes a byte for a pixel
