"""Scores of the Cityscapes benchmark: category IoU, and IoU with equal weight per instance (iIoU).

They equal those of cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling, but are computed
from train ids.
"""

import math

import numpy as np

from cdgcnet.data.datasets.cityscapes_classes import CATEGORIES, LABEL_IDS, NAMES

# Mean number of pixels of an instance in the training set: constants of the benchmark.
AVERAGE_SIZE = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
_INSTANCE_CATEGORIES = ("human", "vehicle")
_CATEGORY = np.array([[n in names for names in CATEGORIES.values()].index(True) for n in NAMES])


def count_instances(instances: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """One row per instance: its class, its pixels, and those predicted as its class or category.

    Returns:
        (I, 4) int64.

    Args:
        instances: (H, W) int32, as ``cdgcnet.data.label_io.read_instances`` gives them.
        prediction: (H, W) uint8 train ids.
    """
    single = instances > 1000  # a group of instances has only a label id
    ids, predicted = instances[single], prediction[single]
    train_id = np.full(max(256, int(ids.max(initial=0)) // 1000 + 1), -1)
    train_id[LABEL_IDS] = range(len(NAMES))
    true = train_id[ids // 1000]
    evaluated = true >= 0
    ids, predicted, true = ids[evaluated], predicted[evaluated], true[evaluated]
    size = np.bincount(ids)
    hit = np.bincount(ids[true == predicted], minlength=len(size))
    near = np.bincount(ids[_CATEGORY[true] == _CATEGORY[predicted]], minlength=len(size))
    found = size.nonzero()[0]
    return np.stack([train_id[found // 1000], size[found], hit[found], near[found]], axis=1)


def _summary(key: str, scores: dict[str, float]) -> dict[str, float]:
    valid = [v for v in scores.values() if not math.isnan(v)]
    mean = math.fsum(valid) / len(valid) if valid else math.nan
    return {key: mean} | {f"{key}-{name}": v for name, v in scores.items()}


def _ratio(hit: float, whole: float) -> float:
    return 100 * hit / whole if whole else math.nan


def category_metrics(confusion: np.ndarray) -> dict[str, float]:
    """ "category_IoU" (mean) and "category_IoU-{name}" in percent from a (19, 19) matrix."""
    scores = {}
    for i, name in enumerate(CATEGORIES):
        inside = np.equal(_CATEGORY, i)
        hit = confusion[inside][:, inside].sum()
        whole = confusion[inside].sum() + confusion[:, inside].sum() - hit
        scores[name] = _ratio(float(hit), float(whole))
    return _summary("category_IoU", scores)


def instance_metrics(confusion: np.ndarray, instances: np.ndarray) -> dict[str, float]:
    """ "iIoU" and "category_iIoU" in percent: means, and with "-{name}" per class and category.

    A pixel of an instance has the weight (mean size of its class) / (size of the instance). False
    positives belong to no instance and have weight 1.

    Args:
        confusion: (19, 19).
        instances: (I, 4) of all images, see :func:`count_instances`.
    """

    def score(rows: np.ndarray, column: int, false_positives: int) -> float:
        weights = [AVERAGE_SIZE[NAMES[row[0]]] / row[1] for row in rows.tolist()]
        # fsum: the same whatever the order of the images.
        hit = math.fsum(w * h for w, h in zip(weights, rows[:, column].tolist(), strict=True))
        whole = math.fsum(w * s for w, s in zip(weights, rows[:, 1].tolist(), strict=True))
        return _ratio(hit, whole + false_positives)

    classes, categories = {}, {}
    for name in AVERAGE_SIZE:
        c = NAMES.index(name)
        wrong = int(confusion[:, c].sum() - confusion[c, c])
        classes[name] = score(instances[instances[:, 0] == c], 2, wrong)
    for i, name in enumerate(CATEGORIES):
        if name in _INSTANCE_CATEGORIES:
            inside = np.equal(_CATEGORY, i)
            wrong = int(confusion[~inside][:, inside].sum())
            categories[name] = score(instances[inside[instances[:, 0]]], 3, wrong)
    return _summary("iIoU", classes) | _summary("category_iIoU", categories)
