"""PASCAL VOC 2012, with the additional labels of SBD ("VOC-aug").

``VOCdevkit/VOC2012`` as published, and ``SegmentationClassAug`` with
``ImageSets/Segmentation/{train_aug,trainval_aug}.txt`` as ``cdgcnet prepare`` makes them.
"""

from functools import partial
from pathlib import Path

from cdgcnet.data.datasets.catalog import (
    color_map,
    list_pairs,
    prepare_advice,
    read_stems,
    require_dir,
)
from cdgcnet.data.datasets.catalog import register as register_one

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
    "train", "tvmonitor",
)  # fmt: skip
COLORS = color_map(len(NAMES))
COUNTS = {"train_aug": 10582, "train": 1464, "val": 1449, "trainval_aug": 12031, "test": 1456}

_LAYOUT = """  {folder}/
    JPEGImages/*.jpg
    SegmentationClass/*.png, SegmentationClassAug/*.png
    ImageSets/Segmentation/{{train,val,test,train_aug,trainval_aug}}.txt"""


def load_split(folder: Path, split: str, name: str) -> list[dict]:
    """Detectron2 dicts of a split, in the list's order.

    train and val take the official masks, and those of ``SegmentationClassAug`` where a folder
    has no others; the splits with SBD take ``SegmentationClassAug``. "test" has no labels.

    Raises:
        FileNotFoundError: for a missing folder, list, image or label file.
    """
    advice = prepare_advice("voc-aug", folder.parent.parent)
    require_dir(folder / "JPEGImages", name, _LAYOUT.format(folder=folder), advice)
    stems = read_stems(folder / "ImageSets" / "Segmentation" / f"{split}.txt", name, advice)
    official = folder / "SegmentationClass"
    labels = folder / "SegmentationClassAug"
    if split in ("train", "val") and official.is_dir():
        labels = official
    return list_pairs(
        name,
        (
            (
                s,
                folder / "JPEGImages" / f"{s}.jpg",
                None if split == "test" else labels / f"{s}.png",
            )
            for s in stems
        ),
        advice,
    )


def register(root: Path) -> None:
    """Register ``cdgc_voc_{train_aug,train,val,trainval_aug,test}`` below ``root``."""
    folder = root / "VOCdevkit" / "VOC2012"
    for split, count in COUNTS.items():
        name = f"cdgc_voc_{split}"
        register_one(
            name,
            partial(load_split, folder, split, name),
            classes=NAMES,
            colors=COLORS,
            official_count=count,
        )
