"""Counts the pixels of one image by class: confusion matrices and the effect of the graph.

Shape shorthand: M classes, (H, W) uint8 label maps; matrices have ground truth in rows.
"""

from collections.abc import Sequence

import cv2
import numpy as np

# OpenCV returns histograms as float32, which holds integers exactly up to this one.
_EXACT = 1 << 24


def histogram(
    maps: Sequence[np.ndarray], num_classes: int, mask: np.ndarray | None = None
) -> np.ndarray:
    """How often each class, or each pair of classes, occurs; values of M or more are not counted.

    Args:
        maps: one or two (H, W) uint8 maps.
        num_classes: M.
        mask: (H, W) uint8; pixels where it is 0 are not counted.

    Returns:
        (M,) or (M, M) int64; the first map's class is the row.
    """
    dims = len(maps)
    total = np.zeros((num_classes,) * dims, np.int64)
    height, width = maps[0].shape
    rows = max(1, _EXACT // width)
    for begin in range(0, height, rows):
        band = slice(begin, begin + rows)
        counts = cv2.calcHist(
            [m[band] for m in maps],
            list(range(dims)),
            None if mask is None else mask[band],
            [num_classes] * dims,
            [0, num_classes] * dims,
        )
        total += counts.reshape(total.shape).astype(np.int64)
    return total


def confusion_matrix(
    labels: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Pixel counts (M, M) int64 with ground truth in rows and predictions in columns.

    Ignored pixels are left out.

    Args:
        labels: (H, W) uint8, classes or ``ignore_label``.
        prediction: (H, W) uint8, classes.
        num_classes: M.
        ignore_label: M or more.

    Raises:
        ValueError: if a pixel that is not ignored has no class.
    """
    counts = histogram([labels, prediction], num_classes)
    valid = np.count_nonzero(labels != ignore_label)
    if counts.sum() != valid:
        raise ValueError(
            f"{valid - counts.sum()} of {valid} pixels are labeled or predicted as something other "
            f"than a class (0 to {num_classes - 1})"
        )
    return counts


def graph_effect(
    labels: np.ndarray, coarse: np.ndarray, refined: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that the graph fixed, and those that it broke.

    Returns:
        fixed (M, M): refined is right, coarse was wrong; row = true class, column = coarse.
        broken (M, M): coarse was right, refined is wrong; row = true class, column = refined.
    """
    matrices = []
    for right, other in ((refined, coarse), (coarse, refined)):
        mask = cv2.compare(labels, right, cv2.CMP_EQ)
        counts = histogram([labels, other], num_classes, mask)
        np.fill_diagonal(counts, 0)
        matrices.append(counts)
    return matrices[0], matrices[1]
