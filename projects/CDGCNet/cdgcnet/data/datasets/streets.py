"""Registration of the built-in street scenes, drawn on first use."""

from functools import partial
from pathlib import Path

from cdgcnet.data.datasets.catalog import register as register_one
from cdgcnet.data.datasets.cityscapes import load_tree
from cdgcnet.data.datasets.cityscapes_classes import COLORS, LABEL_IDS, NAMES

FOLDER = "cdgc_streets"  # below the root of the datasets


def _load(folder: Path, split: str, name: str) -> list[dict]:
    # Imported here because the drawing program imports this package for the classes.
    from cdgcnet.data.synthetic.writer import write_street_scenes

    write_street_scenes(folder)  # returns at once if these scenes exist
    return load_tree(folder, split, name)


def register(root: Path) -> None:
    """Register ``cdgc_streets_{train,val}``; missing scenes are drawn to ``root/cdgc_streets``.

    They are a Cityscapes tree, read by the same loader as the real one.
    """
    for split in ("train", "val"):
        name = f"cdgc_streets_{split}"
        register_one(
            name,
            partial(_load, root / FOLDER, split, name),
            classes=NAMES,
            colors=COLORS,
            ids=LABEL_IDS,
        )
