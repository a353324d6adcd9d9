"""Label maps and overlays in the colors of their classes."""

from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import Metadata
from PIL import Image

from cdgcnet.visualization.change_map import WRONG, change_labels, change_map
from cdgcnet.visualization.colors import (
    BROKEN,
    FIXED,
    IGNORED,
    color_map,
    fit_screen,
    label_image,
    overlay,
)
from cdgcnet.visualization.encoding import label_png, write_label_png

METADATA = Metadata(
    stuff_classes=["road", "sky"], stuff_colors=[(200, 0, 0), (0, 100, 0)], ignore_label=255
)


def test_color_map_by_hand():
    labels = np.array([[0, 1, 255, 2]])
    expected = [(200, 0, 0), (0, 100, 0), IGNORED, IGNORED]
    assert [tuple(c) for c in color_map(labels, METADATA.stuff_colors)[0].tolist()] == expected


def test_label_images_keep_the_labels():
    labels = np.array([[0, 1, 255]], np.uint8)
    image = label_image(labels, METADATA.stuff_colors)
    assert (np.asarray(image) == labels).all()
    assert np.asarray(image.convert("RGB"))[0].tolist() == [[200, 0, 0], [0, 100, 0], [0, 0, 0]]


def test_written_label_maps_keep_the_labels(tmp_path):
    labels = np.array([[0, 1, 255]] * 2, np.uint8)
    write_label_png(tmp_path / "a.png", labels, METADATA)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P" and (np.asarray(image) == labels).all()
        assert np.asarray(image.convert("RGB"))[0, 0].tolist() == [200, 0, 0]
    assert (tmp_path / "a.png").read_bytes() == label_png(labels, METADATA)


def test_overlay_by_hand():
    image = np.full((3, 8, 3), 100, np.uint8)
    labels = np.array([[0] * 4 + [1] * 2 + [255] * 2] * 3, np.uint8)
    found = overlay(image, labels, METADATA)
    assert found.shape == image.shape and found.dtype == np.uint8
    assert found[1, 1].tolist() == [150, 50, 50]  # half of (200, 0, 0) and (100, 100, 100)
    assert found[1, 5].tolist() == [50, 100, 50]
    assert (found[:, [4, 6]] == 255).all()  # outlines
    assert (found[:, 7] == 100).all()  # not a class: the image itself
    assert (image == 100).all()


def test_overlay_writes_the_names_that_fit():
    image = np.zeros((120, 200, 3), np.uint8)
    labels = np.zeros((120, 200), np.uint8)
    labels[:, 190:] = 1  # 10 columns: too narrow for a name
    found = overlay(image, labels, METADATA)
    bright = (found > 150).all(axis=2)  # antialiased letters
    assert bright[:, :189].any() and not bright[:, 191:].any()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1)], ids=str)
def test_overlay_of_a_tiny_image(size):
    found = overlay(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8), METADATA)
    assert (found == (100, 0, 0)).all()


def test_a_name_is_one_white_text_with_a_black_outline_in_any_latin_letters():
    image, labels = np.full((80, 160, 3), 100, np.uint8), np.zeros((80, 160), np.uint8)

    def drawn(name):
        metadata = SimpleNamespace(stuff_classes=[name], stuff_colors=[(100, 100, 100)])
        return overlay(image, labels, metadata)

    white, black = (drawn("II") > 200).all(axis=2), (drawn("II") < 50).all(axis=2)
    columns = np.flatnonzero(white.any(axis=0))
    assert len(columns) < 8  # two thin strokes, not four
    outline = np.flatnonzero(black.any(axis=0))
    assert outline.min() < columns.min() and columns.max() < outline.max()
    assert not np.array_equal(drawn("Straße"), drawn("Stra?e"))


def test_overlay_of_a_large_image_is_scaled_down():
    labels = np.zeros((3000, 4000), np.uint8)
    found = overlay(np.zeros((3000, 4000, 3), np.uint8), labels, METADATA)
    height, width = found.shape[:2]
    assert height * width == pytest.approx(2e6, rel=0.01)
    assert width / height == pytest.approx(4 / 3, rel=0.01)


def test_change_map_by_hand():
    image = np.zeros((1, 5, 3), np.uint8)
    truth = np.array([[0, 0, 0, 0, 255]], np.uint8)
    coarse = np.array([[0, 1, 0, 1, 1]], np.uint8)
    refined = np.array([[0, 0, 1, 1, 0]], np.uint8)
    assert change_labels(truth, coarse, refined, 255)[0].tolist() == [255, 0, 1, 2, 255]
    found = change_map(image, truth, coarse, refined, 255)[0]
    assert [tuple(c) for c in found[1:4].tolist()] == [FIXED, BROKEN, WRONG]
    assert (found[[0, 4]] == 110).all()  # right all along, and ignored: gray
    unlabeled = change_map(image, None, coarse, refined, 255)[0]
    assert [tuple(c) == FIXED for c in unlabeled.tolist()] == (coarse != refined)[0].tolist()
    without = change_map(image, truth, None, refined, 255)[0]
    assert [tuple(c) for c in without[2:4].tolist()] == [WRONG, WRONG]


@pytest.mark.parametrize(("height", "width"), [(2999, 3001), (4096, 2000), (6001, 5999)])
def test_a_large_photo_and_its_labels_are_scaled_down_alike(height, width):
    """Odd rows are left out while an image is halved; its edges stay where the labels' are."""
    labels = np.zeros((height, width), np.uint8)
    labels[height // 3 :, width // 4 :] = 1
    image, small = fit_screen(np.repeat(labels[..., None] * 255, 3, axis=2), labels)
    assert image.shape == (*small.shape, 3)
    assert small.size == pytest.approx(2e6, rel=0.01)
    differ = (image[..., 0] > 127) != (small == 1)
    assert differ.sum() <= sum(small.shape)  # one pixel along the outline
