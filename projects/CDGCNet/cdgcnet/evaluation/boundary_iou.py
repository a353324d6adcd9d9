"""Boundary IoU (Cheng et al., CVPR 2021) from label maps, all classes at once.

Shape shorthand: M classes, (H, W) uint8 label maps.
"""

import math

import cv2
import numpy as np

from cdgcnet.evaluation.confusion import histogram


def boundary_radius(size: tuple[int, int], ratio: float) -> int:
    """The boundary's width in pixels, at least 1: ``ratio`` of the image's diagonal."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_pixels(labels: np.ndarray, radius: int) -> np.ndarray:
    """Pixels with another value, or the outside of the image, at most ``radius`` away.

    Away means along the farther axis, as in the reference implementation, which erodes the mask
    of a class ``radius`` times by 3 x 3.

    Args:
        labels: (H, W) uint8.
        radius: 1 or more.

    Returns:
        (H, W) uint8, not 0 at the boundary.
    """
    # Another value is near if, one step less away, neighbors differ.
    near = cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    if radius > 1:
        near = cv2.dilate(near, np.ones((2 * radius - 1, 2 * radius - 1), np.uint8))
    for border in (near[:radius], near[-radius:], near[:, :radius], near[:, -radius:]):
        border[...] = 255
    return near


def boundary_counts(
    labels: np.ndarray,
    predictions: dict[str, np.ndarray],
    num_classes: int,
    ignore_label: int,
    radius: int,
) -> dict[str, np.ndarray]:
    """What boundary IoU is made of, per class.

    Ignored pixels are taken out of the predictions too and count nowhere; at their edge a class
    ends, in the ground truth as in the predictions.

    Args:
        labels: (H, W) uint8 ground truth.
        predictions: name -> (H, W) uint8 classes.
        num_classes: M.
        ignore_label: M or more.
        radius: of the boundary, in pixels.

    Returns:
        Name -> (3, M) int64 pixels at the boundary of: ground truth and prediction, of the same
        class; the ground truth; the prediction.
    """
    ignored = (labels == ignore_label).view(np.uint8)
    near_truth = boundary_pixels(labels, radius)
    truth = histogram([labels], num_classes, near_truth)
    counts = {}
    for name, prediction in predictions.items():
        counted = cv2.copyTo(labels, ignored, prediction.copy())
        near = boundary_pixels(counted, radius)
        # All of these are 0 or anything else, so the smallest is their "and".
        both = cv2.min(cv2.min(near, near_truth), cv2.compare(labels, counted, cv2.CMP_EQ))
        counts[name] = np.stack(
            [
                histogram([labels], num_classes, both),
                truth,
                histogram([counted], num_classes, near),
            ]
        )
    return counts
