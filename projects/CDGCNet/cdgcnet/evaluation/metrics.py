"""Scores in percent from counted pixels.

Shape shorthand: M classes; matrices (M, M) have ground truth in rows. A score without any pixels to
compute it from is NaN.
"""

import math
from collections.abc import Sequence

import numpy as np


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    out = np.full(len(whole), np.nan)
    return 100 * np.divide(part, whole, out=out, where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def segmentation_metrics(confusion: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Scores in percent from a confusion matrix.

    Returns:
        "mIoU": mean over the classes present in the ground truth, as Detectron2 does today.
        "mIoU_union": mean over the classes present in the ground truth or in the prediction, a
        class that is only predicted counting 0, as Detectron2 v0.6, mmsegmentation and
        cityscapesscripts do.
        "fwIoU", "mACC", "pACC" as Detectron2; "IoU-{name}" and "ACC-{name}" per class, NaN where
        undefined.
    """
    counts = confusion.astype(np.float64)
    hit = np.diag(counts)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = truth + predicted - hit
    present = truth > 0
    iou = _percent(hit, union)
    accuracy = _percent(hit, truth)
    total = truth.sum()
    metrics = {
        "mIoU": _mean(iou[present]),
        "mIoU_union": _mean(iou[union > 0]),
        "fwIoU": float((truth[present] * iou[present]).sum() / total) if total else math.nan,
        "mACC": _mean(accuracy[present]),
        "pACC": float(100 * hit.sum() / total) if total else math.nan,
    }
    for name, class_iou, class_accuracy in zip(names, iou, accuracy, strict=True):
        metrics[f"IoU-{name}"] = float(class_iou)
        metrics[f"ACC-{name}"] = float(class_accuracy)
    return metrics


def boundary_metrics(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Boundary IoU in percent.

    Args:
        counts: (3, M), see :func:`cdgcnet.evaluation.boundary_iou.boundary_counts`.
        names: of the classes.

    Returns:
        "mBIoU": mean over the classes present in the ground truth; "BIoU-{name}" per class.
    """
    both, truth, predicted = counts
    iou = _percent(both, truth + predicted - both)
    metrics = {"mBIoU": _mean(iou[truth > 0])}
    return metrics | {f"BIoU-{name}": float(v) for name, v in zip(names, iou, strict=True)}


def graph_metrics(
    confusion: np.ndarray, fixed: np.ndarray, broken: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """What the graph changed, in percent of the pixels of the ground truth.

    Args:
        confusion: (M, M) of the refined prediction.
        fixed, broken: (M, M), see :func:`cdgcnet.evaluation.confusion.graph_effect`.
        names: of the classes.

    Returns:
        "fixed", "broken" and "net" (their difference), of all pixels; "fixed-{name}", … of the
        pixels of a true class.
    """
    truth = confusion.sum(axis=1)
    parts = {"fixed": fixed.sum(axis=1), "broken": broken.sum(axis=1)}
    parts["net"] = parts["fixed"] - parts["broken"]
    total = truth.sum(keepdims=True)
    metrics = {key: float(_percent(p.sum(keepdims=True), total)[0]) for key, p in parts.items()}
    for key, part in parts.items():
        shares = _percent(part, truth)
        metrics |= {f"{key}-{name}": float(v) for name, v in zip(names, shares, strict=True)}
    return metrics


def node_metrics(
    nodes: np.ndarray, images: np.ndarray, total: int, names: Sequence[str]
) -> dict[str, float]:
    """The number of nodes that the graph had per class.

    Args:
        nodes: (M,) nodes in all images.
        images: (M,) images in which the class has any nodes.
        total: number of images.
        names: of the classes.

    Returns:
        "nodes-{name}": mean number of nodes in the images in which the class has any, or 0;
        "node_images-{name}": percentage of images in which the class has any.
    """
    metrics = {}
    for name, count, seen in zip(names, nodes.tolist(), images.tolist(), strict=True):
        metrics[f"nodes-{name}"] = count / max(seen, 1)
        metrics[f"node_images-{name}"] = 100 * seen / total
    return metrics
