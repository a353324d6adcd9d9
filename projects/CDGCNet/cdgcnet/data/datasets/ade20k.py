"""ADE20K, 150 classes (scene parsing challenge), as published: ``ADEChallengeData2016``."""

from functools import partial
from pathlib import Path

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from cdgcnet.data.datasets.catalog import color_map, list_pairs, look_up_table, require_dir
from cdgcnet.data.datasets.catalog import register as register_one

NAMES = tuple(name.split(",")[0] for name in ADE20K_SEM_SEG_CATEGORIES)
COLORS = color_map(151)[1:]
COUNTS = {"train": 20210, "val": 2000}

_FOLDERS = {"train": "training", "val": "validation"}
# 0 is "other objects", which the challenge does not score.
_LUT = look_up_table({i + 1: i for i in range(150)}, ignored=[0, 255])
_LAYOUT = """  {folder}/
    images/training/*.jpg, images/validation/*.jpg
    annotations/training/*.png, annotations/validation/*.png"""


def load_split(folder: Path, split: str, name: str) -> list[dict]:
    """Detectron2 dicts of a split, sorted by file name.

    Raises:
        FileNotFoundError: for a missing folder or label file.
    """
    layout = _LAYOUT.format(folder=folder)
    images = folder / "images" / _FOLDERS[split]
    require_dir(images, name, layout)
    labels = folder / "annotations" / _FOLDERS[split]
    return list_pairs(
        name,
        ((i.stem, i, labels / f"{i.stem}.png") for i in sorted(images.glob("*.jpg"))),
        f"expected layout:\n{layout}",
        _LUT,
    )


def register(root: Path) -> None:
    """Register ``cdgc_ade20k_{train,val}`` below ``root/ADEChallengeData2016``."""
    for split, count in COUNTS.items():
        name = f"cdgc_ade20k_{split}"
        register_one(
            name,
            partial(load_split, root / "ADEChallengeData2016", split, name),
            classes=NAMES,
            colors=COLORS,
            ids=range(1, 151),
            official_count=count,
        )
