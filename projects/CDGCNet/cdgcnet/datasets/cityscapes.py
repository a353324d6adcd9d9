"""Cityscapes, fine annotations, and any other tree of its layout.

``leftImg8bit/{split}/{city}/*_leftImg8bit.png`` and
``gtFine/{split}/{city}/*_gtFine_labelTrainIds.png`` (19 train ids, 255 ignored).
"""

from functools import partial
from pathlib import Path

from .catalog import register as register_one
from .catalog import require_dir

# Cityscapes' official table: name, label id, colour; the position is the train id.
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
NAMES = [name for name, _, _ in CLASSES]
COLORS = [color for _, _, color in CLASSES]
LABEL_IDS = [label_id for _, label_id, _ in CLASSES]

_LAYOUT = """  {folder}/
    leftImg8bit/{{train,val}}/CITY/*_leftImg8bit.png
    gtFine/{{train,val}}/CITY/*_gtFine_labelTrainIds.png"""


def load_tree(folder: Path, split: str, name: str) -> list[dict]:
    """Detectron2 dicts of one split of a Cityscapes tree, sorted by file name.

    Raises:
        FileNotFoundError: for a missing folder, an empty split or a missing label file.
    """
    layout = _LAYOUT.format(folder=folder)
    images = folder / "leftImg8bit" / split
    require_dir(images, name, layout)
    dicts = []
    missing = []
    for image in sorted(images.glob("*/*_leftImg8bit.png")):
        stem = image.name.removesuffix("_leftImg8bit.png")
        label = folder / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelTrainIds.png"
        if not label.is_file():
            missing.append(label)
        dicts.append({"file_name": str(image), "sem_seg_file_name": str(label), "image_id": stem})
    if missing:
        raise FileNotFoundError(
            f"data set {name}: {len(missing)} of {len(dicts)} label files are missing, the first "
            f"is {missing[0]}. Make them from the official polygons with "
            f"`CITYSCAPES_DATASET={folder} csCreateTrainIdLabelImgs` (package cityscapesscripts)."
        )
    if not dicts:
        raise FileNotFoundError(
            f"data set {name}: no *_leftImg8bit.png below {images}\nexpected layout:\n{layout}"
        )
    return dicts


def register_tree(folder: Path, prefix: str) -> None:
    """Register the train and val split of a Cityscapes tree as ``{prefix}_{split}``."""
    for split in ("train", "val"):
        name = f"{prefix}_{split}"
        register_one(
            name,
            partial(load_tree, folder, split, name),
            classes=NAMES,
            colors=COLORS,
            label_ids=LABEL_IDS,
        )


def register(root: Path) -> None:
    """Register ``cdgc_cityscapes_{train,val}`` below ``root/cityscapes``."""
    register_tree(root / "cityscapes", "cdgc_cityscapes")
