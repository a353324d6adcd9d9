"""Which images a comparison trains on, and which it scores."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog


def name_fraction(file_name: str) -> float:
    """A number in [0, 1) that depends on the file's own name alone."""
    found = hashlib.blake2b(Path(file_name).name.encode(), digest_size=8).digest()
    return int.from_bytes(found, "big") / 2**64


def _labeled(key: str, name: str) -> list[dict]:
    dicts = DatasetCatalog.get(name)
    unlabeled = [d["file_name"] for d in dicts if "sem_seg_file_name" not in d]
    if unlabeled or not dicts:
        raise ValueError(
            f"DATASETS.{key} {name}: {len(unlabeled)} of {len(dicts)} images have no labels"
            + (f", the first is {unlabeled[0]}" if unlabeled else "")
            + "; a comparison needs labels of every image"
        )
    return dicts


def _at_most(entries: Sequence[dict], count: int) -> list[dict]:
    """The first ``count`` by descending :func:`name_fraction`, all for 0."""
    ordered = sorted(entries, key=lambda d: (-name_fraction(d["file_name"]), d["file_name"]))
    return ordered[: count or None]


def choose_images(
    cfg: CfgNode, holdout: float, train_images: int, eval_images: int
) -> tuple[list[dict], list[dict]]:
    """Training images and images to score.

    Args:
        cfg: DATASETS.TRAIN and, without a holdout, DATASETS.TEST of one set; all are registered.
        holdout: share of the training images that is scored instead of DATASETS.TEST, which then
            stays unread; 0 for none. An image's name decides whether it belongs to it.
        train_images, eval_images: at most so many, chosen by name; 0 for all. A held-out part
            takes other images than these wherever it can.

    Raises:
        ValueError: naming the key, for a set without labels, several test sets or an empty part.
    """
    train = [d for name in cfg.DATASETS.TRAIN for d in _labeled("TRAIN", name)]
    if holdout:
        test = [d for d in train if name_fraction(d["file_name"]) < holdout]
        train = [d for d in train if name_fraction(d["file_name"]) >= holdout]
        if not (test and train):
            raise ValueError(
                f"--holdout {holdout:g} leaves {len(train)} images to train on and {len(test)} to "
                "score; expected some of each"
            )
    else:
        if len(cfg.DATASETS.TEST) != 1:
            raise ValueError(
                f"DATASETS.TEST is {list(cfg.DATASETS.TEST)}; expected one dataset to score"
            )
        test = _labeled("TEST", cfg.DATASETS.TEST[0])
    return _at_most(train, train_images), _at_most(test, eval_images)
