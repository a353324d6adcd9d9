"""PASCAL-Context: 59 classes, or 60 with the background, on images of VOC 2010.

``VOCdevkit/VOC2010/SegmentationClassContext/*.png`` (0 background, 1 to 59) as
``cdgcnet prepare`` makes them.
"""

from functools import partial
from pathlib import Path

from cdgcnet.data.datasets.catalog import (
    color_map,
    list_pairs,
    look_up_table,
    prepare_advice,
    read_stems,
    require_dir,
)
from cdgcnet.data.datasets.catalog import register as register_one

NAMES = (
    "aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle",
    "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow",
    "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground",
    "horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform",
    "pottedplant", "road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa",
    "table", "track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood",
)  # fmt: skip
COLORS = color_map(60)[1:]
COUNTS = {"train": 4998, "val": 5105}

# Without the background, which is ignored.
_LUT_59 = look_up_table({i + 1: i for i in range(59)}, ignored=[0, 255])
_LAYOUT = """  {folder}/
    JPEGImages/*.jpg
    SegmentationClassContext/*.png        0 background, 1 to 59
    ImageSets/SegmentationContext/{{train,val}}.txt"""


def load_split(folder: Path, split: str, name: str, background: bool) -> list[dict]:
    """Detectron2 dicts of a split.

    Args:
        background: whether pixels outside the 59 classes are a class (number 0) or ignored.

    Raises:
        FileNotFoundError: for a missing folder, list, image or label file.
    """
    labels = folder / "SegmentationClassContext"
    advice = prepare_advice("pascal-context", folder.parent.parent)
    require_dir(labels, name, _LAYOUT.format(folder=folder), advice)
    stems = read_stems(folder / "ImageSets" / "SegmentationContext" / f"{split}.txt", name, advice)
    return list_pairs(
        name,
        ((s, folder / "JPEGImages" / f"{s}.jpg", labels / f"{s}.png") for s in stems),
        advice,
        None if background else _LUT_59,
    )


def register(root: Path) -> None:
    """Register ``cdgc_pascal_context_{59,60}_{train,val}`` below ``root``."""
    folder = root / "VOCdevkit" / "VOC2010"
    for split, count in COUNTS.items():
        for background in (False, True):
            name = f"cdgc_pascal_context_{59 + background}_{split}"
            register_one(
                name,
                partial(load_split, folder, split, name, background),
                classes=("background", *NAMES) if background else NAMES,
                colors=[(0, 0, 0), *COLORS] if background else COLORS,
                ids=range(60) if background else range(1, 60),
                official_count=count,
            )
