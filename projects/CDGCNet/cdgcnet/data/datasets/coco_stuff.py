"""COCO-Stuff: 80 things and 91 stuff classes, the 10k and the 164k images.

10k: ``coco_stuff_10k`` as ``cdgcnet prepare`` makes it, contiguous label PNGs. 164k:
``coco/{train2017,val2017}`` and ``coco/stuffthingmaps/…`` as published, whose pixel values are the
ids minus one.
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

# Ids 1 to 182 without those that COCO never annotated.
_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
IDS = [i for i in range(1, 183) if i not in _GAPS]
NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush", "banner", "blanket", "branch", "bridge",
    "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other",
    "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff",
    "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile",
    "floor-wood", "flower", "fog", "food-other", "fruit", "furniture-other", "grass", "gravel",
    "ground-other", "hill", "house", "leaves", "light", "mat", "metal", "mirror-stuff", "moss",
    "mountain", "mud", "napkin", "net", "paper", "pavement", "pillow", "plant-other", "plastic",
    "platform", "playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug",
    "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs",
    "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree",
    "vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone",
    "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
COLORS = [color_map(183)[i] for i in IDS]
COUNTS = {"train": 9000, "test": 1000}
COUNTS_164K = {"train": 118287, "val": 5000}

_LUT_164K = look_up_table({own - 1: i for i, own in enumerate(IDS)}, ignored=[255])
_LAYOUT = """  {folder}/
    images/*.jpg
    labels/*.png             0 to 170, 255 unlabeled
    imageLists/{{train,test}}.txt"""
_LAYOUT_164K = """  {folder}/
    train2017/*.jpg, val2017/*.jpg
    stuffthingmaps/{{train2017,val2017}}/*.png   (stuffthingmaps_trainval2017.zip)"""


def load_10k(folder: Path, split: str, name: str) -> list[dict]:
    """Detectron2 dicts of "train" (9000) or "test" (1000).

    Raises:
        FileNotFoundError: for a missing folder, list, image or label file.
    """
    advice = prepare_advice("coco-stuff-10k", folder.parent)
    require_dir(folder / "images", name, _LAYOUT.format(folder=folder), advice)
    stems = read_stems(folder / "imageLists" / f"{split}.txt", name, advice)
    return list_pairs(
        name,
        ((s, folder / "images" / f"{s}.jpg", folder / "labels" / f"{s}.png") for s in stems),
        advice,
    )


def load_164k(folder: Path, split: str, name: str) -> list[dict]:
    """Detectron2 dicts of "train" (118287) or "val" (5000), sorted by file name.

    Raises:
        FileNotFoundError: for a missing folder or label file.
    """
    layout = _LAYOUT_164K.format(folder=folder)
    images = folder / f"{split}2017"
    require_dir(images, name, layout)
    labels = folder / "stuffthingmaps" / f"{split}2017"
    return list_pairs(
        name,
        ((i.stem, i, labels / f"{i.stem}.png") for i in sorted(images.glob("*.jpg"))),
        f"expected layout:\n{layout}",
        _LUT_164K,
    )


def register(root: Path) -> None:
    """Register ``cdgc_coco_stuff_10k_{train,test}`` and ``cdgc_coco_stuff_164k_{train,val}``."""
    for part, folder, counts, load in (
        ("10k", root / "coco_stuff_10k", COUNTS, load_10k),
        ("164k", root / "coco", COUNTS_164K, load_164k),
    ):
        for split, count in counts.items():
            name = f"cdgc_coco_stuff_{part}_{split}"
            register_one(
                name,
                partial(load, folder, split, name),
                classes=NAMES,
                colors=COLORS,
                ids=IDS,
                official_count=count,
            )
