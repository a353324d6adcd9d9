"""Boundary IoU: numbers by hand, and the masks of the paper's definition class by class."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cdgcnet.evaluation.boundary_iou import boundary_counts, boundary_pixels, boundary_radius
from cdgcnet.evaluation.metrics import boundary_metrics

M = 3


def inner_boundary(mask: np.ndarray, radius: int) -> np.ndarray:
    """Pixels of a mask at most ``radius`` from its contour; outside the image there is no mask."""
    padded = np.pad(mask.astype(np.uint8), 1)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=radius)
    return mask & (eroded[1:-1, 1:-1] == 0)


def boundary_iou(labels: np.ndarray, guess: np.ndarray, label: int, radius: int) -> float:
    """The definition (Cheng et al., Eq. 3), for one class; ignored pixels are in no mask."""
    valid = labels != 255
    truth = inner_boundary((labels == label) & valid, radius)
    predicted = inner_boundary((guess == label) & valid, radius)
    union = (truth | predicted).sum()
    return 100 * (truth & predicted).sum() / union if union else math.nan


def test_width_is_a_share_of_the_diagonal():
    # A 3-4-5 triangle: the diagonal of 300 x 400 is 500, 2 % of it are 10.
    assert boundary_radius((300, 400), 0.02) == 10
    assert boundary_radius((3, 4), 0.02) == 1  # 0.1, but a boundary has a pixel


def test_boundary_by_hand():
    # Two classes side by side in a 5 x 8 image, radius 1: the image's edge and the two columns
    # at the contact. Inside are rows 1-3 of columns 1, 2 and 5, 6.
    labels = np.repeat([[0] * 4 + [1] * 4], 5, axis=0).astype(np.uint8)
    inside = np.zeros((5, 8), bool)
    inside[1:4, [1, 2, 5, 6]] = True
    np.testing.assert_array_equal(boundary_pixels(labels, 1) == 0, inside)


def test_boundary_iou_by_hand():
    # Truth: a 3 x 3 square of class 1 in 7 x 7; guess: the same square one column to the right.
    # Radius 1: its boundary is the ring of 8. Rings share 2 columns of 3, without the middles
    # (row 1: 2, row 2: 0, for the truth's right column is the guess's middle; row 3: 2) = 4.
    # BIoU of class 1: 4 / (8 + 8 - 4).
    labels = np.zeros((7, 7), np.uint8)
    labels[2:5, 2:5] = 1
    guess = np.roll(labels, 1, axis=1)
    counts = boundary_counts(labels, {"refined": guess}, 2, 255, 1)["refined"]
    assert counts[:, 1].tolist() == [4, 8, 8]
    assert boundary_metrics(counts, ["a", "b"])["BIoU-b"] == pytest.approx(100 * 4 / 12)


maps = hnp.arrays(np.uint8, (7, 9), elements=st.integers(0, M - 1))
truths = hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 0, 1, 2, 255]))


@given(truths, maps, st.integers(1, 3))
def test_all_classes_at_once_are_the_classes_one_by_one(labels, guess, radius):
    counts = boundary_counts(labels, {"refined": guess}, M, 255, radius)["refined"]
    found = boundary_metrics(counts, list("abc"))
    expected = [boundary_iou(labels, guess, c, radius) for c in range(M)]
    for name, value in zip("abc", expected, strict=True):
        assert found[f"BIoU-{name}"] == pytest.approx(value, nan_ok=True)


@given(truths, maps)
def test_a_wide_boundary_is_everything(labels, guess):
    # Then boundary IoU is IoU.
    counts = boundary_counts(labels, {"refined": guess}, M, 255, 9)["refined"]
    for c, (both, truth, predicted) in enumerate(counts.T.tolist()):
        valid = labels != 255
        assert both == ((labels == c) & (guess == c)).sum()
        assert truth == (labels == c).sum()
        assert predicted == ((guess == c) & valid).sum()


@given(truths, maps, maps)
def test_predictions_at_ignored_pixels_never_count(labels, guess, other):
    changed = np.where(labels == 255, other, guess)
    before = boundary_counts(labels, {"x": guess}, M, 255, 1)["x"]
    np.testing.assert_array_equal(before, boundary_counts(labels, {"x": changed}, M, 255, 1)["x"])


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (2, 2)])
def test_the_smallest_images_are_all_boundary(size):
    labels = np.zeros(size, np.uint8)
    counts = boundary_counts(labels, {"x": labels}, M, 255, 1)["x"]
    assert counts[:, 0].tolist() == [labels.size] * 3
    assert math.isnan(boundary_metrics(counts, list("abc"))["BIoU-b"])
