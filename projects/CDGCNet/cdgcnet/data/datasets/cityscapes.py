"""Cityscapes, fine and coarse annotations, and any other tree of its layout.

``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` and
``gtFine/{split}/{city}/*_gtFine_labelTrainIds.png`` (19 train ids, 255 ignored); the coarse labels
of train_extra are in ``gtCoarse``. Train ids that are absent are made from label ids or polygons.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cdgcnet.data.datasets.catalog import list_pairs, prepare_advice, require_dir
from cdgcnet.data.datasets.catalog import register as register_one
from cdgcnet.data.datasets.cityscapes_classes import COLORS, LABEL_IDS, NAMES
from cdgcnet.data.datasets.cityscapes_labels import make_missing_train_ids

COUNTS = {"train": 2975, "val": 500, "trainval": 3475, "test": 1525, "train_extra": 19998}

_LAYOUT = """  {folder}/
    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png
    gtFine/SPLIT/CITY/*_gtFine_labelTrainIds.png   (or labelIds, or polygons.json; test: none)
    gtCoarse/train_extra/CITY/*_gtCoarse_…"""


def _pairs(folder: Path, split: str, kind: str | None) -> Iterator[tuple[str, Path, Path | None]]:
    for image in sorted((folder / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        stem = image.name.removesuffix("_leftImg8bit.png")
        labels = None
        if kind:
            name = f"{stem}_{kind}_labelTrainIds.png"
            labels = folder / kind / split / image.parent.name / name
        yield stem, image, labels


def load_tree(
    folder: Path, split: str, name: str, kind: str | None = "gtFine", parts: Sequence[str] = ()
) -> list[dict]:
    """Detectron2 dicts of one split of a Cityscapes tree, sorted by file name.

    Args:
        folder: holds ``leftImg8bit``.
        split: its sub-folder, unless ``parts`` are given.
        name: of the dataset, for messages.
        kind: folder of the labels, "gtFine" or "gtCoarse"; None for images alone.
        parts: several sub-folders that make up the split.

    Returns:
        Dicts with "instance_file_name" too, where ``*_instanceIds.png`` lies next to the labels.

    Raises:
        FileNotFoundError: for a missing folder, an empty split or a missing label file.
    """
    layout = _LAYOUT.format(folder=folder)
    advice = prepare_advice("cityscapes", folder.parent)
    for part in parts or [split]:
        require_dir(folder / "leftImg8bit" / part, name, layout, advice)
    pairs = [pair for part in parts or [split] for pair in _pairs(folder, part, kind)]
    make_missing_train_ids([labels for _, _, labels in pairs if labels is not None])
    dicts = list_pairs(name, pairs, f"{advice}\nexpected layout:\n{layout}")
    for entry in dicts:
        if "sem_seg_file_name" in entry:
            instances = entry["sem_seg_file_name"].replace("labelTrainIds", "instanceIds")
            if Path(instances).is_file():
                entry["instance_file_name"] = instances
    return dicts


def register_tree(folder: Path, prefix: str, splits: Sequence[str] = ("train", "val")) -> None:
    """Register splits of a Cityscapes tree as ``{prefix}_{split}``."""
    for split in splits:
        name = f"{prefix}_{split}"
        kind = {"test": None, "train_extra": "gtCoarse"}.get(split, "gtFine")
        parts = ("train", "val") if split == "trainval" else ()
        register_one(
            name,
            partial(load_tree, folder, split, name, kind, parts),
            classes=NAMES,
            colors=COLORS,
            ids=LABEL_IDS,
            official_count=COUNTS[split],
        )


def register(root: Path) -> None:
    """Register ``cdgc_cityscapes_{train,val,trainval,test,train_extra}`` below ``root``."""
    register_tree(root / "cityscapes", "cdgc_cityscapes", tuple(COUNTS))
