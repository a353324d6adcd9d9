"""The datasets that a config names: registered, of one class list, of the model's class count."""

import difflib
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from cdgcnet.data.datasets.catalog import EVALUATOR_TYPE


def _difference(found: list[str], expected: list[str]) -> str:
    return next(
        f"number {i} is {a!r} in the one, {b!r} in the other"
        for i, (a, b) in enumerate(zip(found, expected, strict=True))
        if a != b
    )


def _unregistered(key: str, name: str) -> str:
    """The message for a name that nothing is registered under: what may have been meant."""
    metadata = {n: MetadataCatalog.get(n) for n in DatasetCatalog.list()}
    usable = sorted(n for n, m in metadata.items() if m.get("stuff_classes"))
    close = difflib.get_close_matches(name, usable)
    if close:
        hint = f"Did you mean {' or '.join(close)}?"
    else:
        ours = (n for n in usable if metadata[n].get("evaluator_type") == EVALUATOR_TYPE)
        hint = f"There are {', '.join(ours)} and Detectron2's own."
    return (
        f"{key} names {name!r}, which is not registered. {hint} Own data are registered by "
        "DATASETS.FOLDERS (docs/own_data.md)."
    )


def _class_count(key: str, name: str, classes: Sequence[str], wanted: int) -> str:
    """The message for a dataset with another number of classes than the model."""
    if not classes:
        return (
            f"{key} names {name}, which has no stuff_classes in its metadata: it is no dataset "
            "for semantic segmentation"
        )
    hint = f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {len(classes)}"
    if wanted == len(classes) + 1:
        hint += "; what is ignored (255) is no class"
    return (
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {wanted}; {name} ({key}) has {len(classes)} classes, "
        f"{classes[0]} to {classes[-1]}: {hint}"
    )


def check_datasets(cfg: CfgNode, train: bool) -> None:
    """Refuse unknown datasets and a class count that does not match, before reading data.

    Raises:
        ValueError: naming the key, the value and what there is.
    """
    keys = (["TRAIN"] if train else []) + ["TEST"]
    first: tuple[str, list[str]] | None = None
    for key in keys:
        names = list(cfg.DATASETS[key])
        if not names:
            raise ValueError(f"DATASETS.{key} is empty; expected the name of a dataset")
        for name in names:
            if name not in DatasetCatalog.list():
                raise ValueError(_unregistered(f"DATASETS.{key}", name))
            classes = MetadataCatalog.get(name).get("stuff_classes", [])
            wanted = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            if len(classes) != wanted:
                raise ValueError(_class_count(f"DATASETS.{key}", name, classes, wanted))
            first = first or (f"DATASETS.{key} {name}", classes)
            if classes != first[1]:
                raise ValueError(
                    f"DATASETS.{key} {name} and {first[0]} have different classes: "
                    f"{_difference(classes, first[1])}"
                )
