"""Boundary IoU (Cheng et al., CVPR 2021) from label maps, all classes at once.

Shape shorthand: M classes, (H, W) uint8 label maps.
"""

import math

import cv2
import numpy as np

from cdgcnet.evaluation.confusion import histogram


def boundary_radius(size: tuple[int, int], ratio: float) -> int:
    """The width of the boundary in pixels: ``ratio`` of the image's diagonal, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_pixels(labels: np.ndarray, radius: int) -> np.ndarray:
    """Pixels at most ``radius`` away from another value or from the outside of the image.

    The distance is the larger one of the two axes, as in the reference implementation, which
    erodes the mask of a class ``radius`` times by 3 x 3.

    Args:
        labels: (H, W) uint8.
        radius: 1 or more.

    Returns:
        (H, W) uint8, non-zero at the boundary.
    """
    # Another value is within the radius where neighbors differ one step nearer.
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
    """The pixel counts that boundary IoU is computed from, per class.

    Ignored pixels are removed from the predictions too, so they never count, and their edge is a
    boundary both in the ground truth and in the predictions.

    Args:
        labels: (H, W) uint8 ground truth.
        predictions: name -> (H, W) uint8 classes.
        num_classes: M.
        ignore_label: M or more.
        radius: of the boundary, in pixels.

    Returns:
        Name -> (3, M) int64 pixels at the boundary of both ground truth and prediction, where
        they agree; of the ground truth; of the prediction.
    """
    ignored = (labels == ignore_label).view(np.uint8)
    near_truth = boundary_pixels(labels, radius)
    truth = histogram([labels], num_classes, near_truth)
    counts = {}
    for name, prediction in predictions.items():
        counted = cv2.copyTo(labels, ignored, prediction.copy())
        near = boundary_pixels(counted, radius)
        # Zero means False and everything else True, so the minimum is a logical "and".
        both = cv2.min(cv2.min(near, near_truth), cv2.compare(labels, counted, cv2.CMP_EQ))
        counts[name] = np.stack(
            [
                histogram([labels], num_classes, both),
                truth,
                histogram([counted], num_classes, near),
            ]
        )
    return counts
