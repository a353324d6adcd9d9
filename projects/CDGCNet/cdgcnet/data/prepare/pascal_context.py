"""PASCAL-Context: MATLAB annotations of 459 categories as PNGs of the 59 usual classes.

0 is background: every other category, and what is unlabeled. The splits are VOC 2010's lists
``ImageSets/Main/{train,val}.txt``: every image of them is annotated.
"""

from functools import partial
from pathlib import Path

import numpy as np

from cdgcnet.data.datasets import pascal_context
from cdgcnet.data.prepare.archives import Content, File, Sources
from cdgcnet.data.prepare.completeness import Split, read_list
from cdgcnet.data.prepare.conversion import Job, Runner
from cdgcnet.data.prepare.label_formats import map_labels, save_labels
from cdgcnet.data.prepare.matlab import read_mat, require_variable

FOLDER = "VOCdevkit/VOC2010"
OFFICIAL = ("VOCtrainval_03-May-2010.tar", "trainval.tar.gz")
LOOKED_FOR = """  trainval.tar.gz of PASCAL-Context, or its folder trainval/*.mat
  labels.txt of PASCAL-Context (459 lines "NUMBER: NAME")
  VOCtrainval_03-May-2010.tar, or a folder VOC2010 with JPEGImages/ and
    ImageSets/Main/{train,val}.txt"""
COUNTS = {"train": 4998, "val": 5105}

_ID = r"(?P<id>\d{4}_\d{6})"
_IMAGE = rf"VOC2010/JPEGImages/{_ID}\.jpg"
_LABEL = rf"trainval/{_ID}\.mat"
_NAMES = r"(?P<names>labels)\.txt"
_LIST = r"VOC2010/ImageSets/Main/(?P<split>train|val)\.txt"
WANTED = (_IMAGE, _LABEL, _NAMES, _LIST)

_NUM_CATEGORIES = 459
# labels.txt and 59_labels.txt of the official site do not agree on these.
_ALIASES = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


def prepare(sources: Sources, root: Path, runner: Runner) -> list[Split]:
    """Make ``root/VOCdevkit/VOC2010``.

    Raises:
        ValueError: if lists, annotations or their names are not there or not as they should be.
    """
    folder = root / FOLDER
    lists = sources.first(_LIST, "split")
    labels = sources.first(_LABEL, "id")
    if set(lists) != set(COUNTS) or not labels:
        what = "PASCAL-Context's annotations" if set(lists) == set(COUNTS) else "VOC 2010's lists"
        raise sources.nothing(what, LOOKED_FOR)
    table = category_table(_names_file(sources))
    here = folder / "ImageSets" / "SegmentationContext"
    runner.run([Job(f, here / f"{split}.txt") for split, f in lists.items()], "lists")
    names = {split: read_list(here / f"{split}.txt") for split in COUNTS}
    needed = {name for listed in names.values() for name in listed}

    images = sources.first(_IMAGE, "id")
    jobs = [Job(images[n], _image(folder, n)) for n in sorted(needed) if n in images]
    runner.run(jobs, "images")
    jobs = [
        Job(labels[n], _label(folder, n), partial(convert, _image(folder, n), table))
        for n in sorted(needed)
        if n in labels
    ]
    runner.run(jobs, "labels")
    return [
        Split(split, COUNTS[split], [(_image(folder, n), _label(folder, n)) for n in names[split]])
        for split in COUNTS
    ]


def category_table(file: File) -> np.ndarray:
    """The class 1 to 59 of each of the 459 categories, 0 for all others, (460,).

    Args:
        file: labels.txt, lines "NUMBER: NAME".

    Raises:
        ValueError: for another format, or naming a class that is not in it.
    """
    numbers = {}
    for line in file.lines():
        number, colon, name = line.partition(":")
        if not colon or not number.strip().isdigit():
            raise ValueError(f'{file}: expected lines "NUMBER: NAME", found {line!r}')
        numbers[_plain(name)] = int(number)
    if set(numbers.values()) != set(range(1, _NUM_CATEGORIES + 1)):
        raise ValueError(
            f"{file}: expected the {_NUM_CATEGORIES} categories of PASCAL-Context numbered from "
            f"1, found {len(numbers)} names"
        )
    table = np.zeros(_NUM_CATEGORIES + 1, np.int64)
    for label, name in enumerate(pascal_context.NAMES, start=1):
        if _plain(name) not in numbers:
            raise ValueError(f"{file}: the class {name!r} is not in it")
        table[numbers[_plain(name)]] = label
    return table


def convert(image: Path, table: np.ndarray, content: Content, target: Path) -> None:
    """A palette PNG of the annotation ``LabelMap``."""
    labels = require_variable(read_mat(content, "LabelMap"), "LabelMap")
    labels = map_labels(labels, table, f"a category of PASCAL-Context (0 to {_NUM_CATEGORIES})")
    save_labels(labels, [(0, 0, 0), *pascal_context.COLORS], image, target)


def _plain(name: str) -> str:
    plain = name.replace(" ", "").lower()
    return _ALIASES.get(plain, plain)


def _names_file(sources: Sources) -> File:
    """labels.txt; other datasets have a file of that name too: the one of 459 lines."""
    files = [file for _, file in sources.matching(_NAMES)]
    if not files:
        raise sources.nothing("labels.txt of PASCAL-Context", LOOKED_FOR)
    return next((file for file in files if _num_lines(file) == _NUM_CATEGORIES), files[0])


def _num_lines(file: File) -> int:
    try:
        return len(file.lines())
    except ValueError:  # no text
        return 0


def _image(folder: Path, name: str) -> Path:
    return folder / "JPEGImages" / f"{name}.jpg"


def _label(folder: Path, name: str) -> Path:
    return folder / "SegmentationClassContext" / f"{name}.png"
