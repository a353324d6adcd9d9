"""COCO-Stuff-10k: MATLAB annotations of version 1.1 or 1.0 as PNGs of 171 classes.

Version 1.1: 0 is unlabeled, 1 to 182 are COCO-Stuff ids, 11 of which never occur.
Version 1.0: 1 is unlabeled, 2 to 81 are things and 82 to 172 stuff, in the same order.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cdgcnet.data.datasets import coco_stuff
from cdgcnet.data.prepare.archives import Content, File, Sources
from cdgcnet.data.prepare.completeness import Split, read_list
from cdgcnet.data.prepare.conversion import Job, Runner
from cdgcnet.data.prepare.label_formats import map_labels, save_labels
from cdgcnet.data.prepare.matlab import is_hdf5, read_mat, require_variable

FOLDER = "coco_stuff_10k"
OFFICIAL = ("cocostuff-10k-v1.1.zip", "cocostuff-10k-v1.0.zip", "cocostuff-data-v1.0.zip")
LOOKED_FOR = """  cocostuff-10k-v1.1.zip (1.0 will do as well), or a folder with images/COCO_*.jpg,
    annotations/COCO_*.mat and imageLists/{train,test}.txt"""
COUNTS = {"train": 9000, "test": 1000}

_ID = r"(?P<id>COCO_\w+)"
_IMAGE = rf"images/{_ID}\.jpg"
_LABEL = rf"annotations/{_ID}\.mat"
_LIST = r"imageLists/(?P<split>train|test)\.txt"
WANTED = (_IMAGE, _LABEL, _LIST)

_UNLABELED = 255
_NUM_V10 = 172  # names in version 1.0, "unlabeled" among them
_NUM_V11 = 182


def tables() -> dict[str, tuple[np.ndarray, str]]:
    """Per version the contiguous class of each value, and the values in words."""
    v11 = np.full(_NUM_V11 + 1, -1)
    v11[0] = _UNLABELED
    v11[coco_stuff.IDS] = range(len(coco_stuff.IDS))
    v10 = np.arange(_NUM_V10 + 1) - 2
    v10[:2] = -1, _UNLABELED
    return {
        "1.1": (v11, "of version 1.1 (0, and 1 to 182 without the 11 ids that COCO never used)"),
        "1.0": (v10, "of version 1.0 (1 to 172)"),
    }


def prepare(sources: Sources, root: Path, runner: Runner) -> list[Split]:
    """Make ``root/coco_stuff_10k``.

    Raises:
        ValueError: if the lists or the annotations are not there.
    """
    folder = root / FOLDER
    lists = sources.first(_LIST, "split")
    labels = sources.first(_LABEL, "id")
    if set(lists) != set(COUNTS) or not labels:
        raise sources.nothing("COCO-Stuff-10k", LOOKED_FOR)
    jobs = [Job(file, folder / "imageLists" / f"{split}.txt") for split, file in lists.items()]
    runner.run(jobs, "lists")
    names = {split: read_list(folder / "imageLists" / f"{split}.txt") for split in COUNTS}
    needed = {name for listed in names.values() for name in listed}

    images = sources.first(_IMAGE, "id")
    jobs = [Job(images[n], _image(folder, n)) for n in sorted(needed) if n in images]
    runner.run(jobs, "images")
    version = _version([labels[name] for name in sorted(labels)])
    jobs = [
        Job(labels[n], _label(folder, n), partial(convert, _image(folder, n), version))
        for n in sorted(needed)
        if n in labels
    ]
    runner.run(jobs, "labels")
    return [
        Split(split, COUNTS[split], [(_image(folder, n), _label(folder, n)) for n in names[split]])
        for split in COUNTS
    ]


def read_annotation(content: Content) -> tuple[str, dict[str, np.ndarray]]:
    """The version of an annotation file, by the number of its names or else its format; and it.

    Raises:
        ValueError: for an unreadable file, or another number of names.
    """
    variables = read_mat(content, "S", "names")
    if "names" not in variables:
        return "1.0" if is_hdf5(content) else "1.1", variables
    versions = {_NUM_V10: "1.0", _NUM_V11: "1.1"}
    number = variables["names"].size
    if number not in versions:
        raise ValueError(
            f"lists {number} class names; version 1.0 has {_NUM_V10}, 1.1 has {_NUM_V11}"
        )
    return versions[number], variables


def convert(image: Path, version: str, content: Content, target: Path) -> None:
    """A palette PNG of the annotation ``S``, which must be of the given version."""
    found, variables = read_annotation(content)
    if found != version:
        raise ValueError(
            f"is of version {found}, others here are of {version}; give --src one version alone"
        )
    labels = map_labels(require_variable(variables, "S"), *tables()[version])
    save_labels(labels, coco_stuff.COLORS, image, target)


def _version(files: Sequence[File]) -> str:
    """The version of the first readable file: the one that all must have."""
    for file in files:
        try:
            return read_annotation(file.content())[0]
        except ValueError:
            continue  # its conversion will say the same
    return "1.1"


def _image(folder: Path, name: str) -> Path:
    return folder / "images" / f"{name}.jpg"


def _label(folder: Path, name: str) -> Path:
    return folder / "labels" / f"{name}.png"
