"""PASCAL VOC 2012 with the extra annotations of SBD: the sets train_aug and trainval_aug.

train_aug = (SBD train ∪ SBD val ∪ VOC train) − VOC val: 10582 images; with val 12031. VOC's own
images have their official masks (with a 255 border), the others SBD's (without).
"""

from functools import partial
from pathlib import Path

import numpy as np

from cdgcnet.data.datasets import voc
from cdgcnet.data.prepare.archives import Content, File, Sources
from cdgcnet.data.prepare.completeness import Split, read_list, write_list
from cdgcnet.data.prepare.conversion import Job, Runner, place
from cdgcnet.data.prepare.label_formats import (
    map_labels,
    read_png,
    require_size,
    save_labels,
)
from cdgcnet.data.prepare.matlab import read_mat, require_variable

FOLDER = "VOCdevkit/VOC2012"
OFFICIAL = ("VOCtrainval_11-May-2012.tar", "VOC2012test.tar", "benchmark.tgz")
LOOKED_FOR = """  VOCtrainval_11-May-2012.tar, or a folder with JPEGImages/, SegmentationClass/ and
    ImageSets/Segmentation/{train,val}.txt
  benchmark.tgz of SBD, or a folder with cls/*.mat, train.txt and val.txt
  VOC2012test.tar (optional)"""
COUNTS = {"train_aug": 10582, "trainval_aug": 12031, "train": 1464, "val": 1449, "test": 1456}

# Images of other years belong to other datasets.
_VOC2012 = r"(?<!VOC200\d/)(?<!VOC201[01]/)"
_ID = r"(?P<id>\d{4}_\d{6})"
IMAGE = rf"{_VOC2012}JPEGImages/{_ID}\.jpg"
AUG_LABEL = rf"{_VOC2012}SegmentationClassAug/{_ID}\.png"
_MASK = rf"{_VOC2012}SegmentationClass/{_ID}\.png"
_LIST = rf"{_VOC2012}ImageSets/Segmentation/(?P<split>train|val|trainval|test)\.txt"
_SBD_LABEL = rf"cls/{_ID}\.mat"
_SBD_LIST = r"(?P<split>train|val)\.txt"
WANTED = (IMAGE, _MASK, _LIST, _SBD_LABEL, _SBD_LIST)

_VALUES = np.full(256, -1)
_VALUES[:21] = range(21)
_SBD_VALUES = _VALUES.copy()
_VALUES[255] = 255


def prepare(sources: Sources, root: Path, runner: Runner) -> list[Split]:
    """Make ``root/VOCdevkit/VOC2012``.

    Raises:
        ValueError: if VOC's lists are not there, or a list would change.
    """
    folder = root / FOLDER
    lists = _stage_lists(sources, folder, runner)
    if not lists["train"] or not lists["val"]:
        raise sources.nothing("PASCAL VOC 2012", LOOKED_FOR)
    sbd = sources.first(_SBD_LABEL, "id")
    extra = _sbd_names(sources)
    own = {*lists["train"], *lists["val"]}
    aug = (extra | set(lists["train"])) - set(lists["val"]) if extra else set()
    names = own | aug
    segmentation = folder / "ImageSets" / "Segmentation"
    if aug:
        write_list(segmentation / "train_aug.txt", aug, runner.overwrite)
        write_list(segmentation / "trainval_aug.txt", names, runner.overwrite)

    needed = names | set(lists["test"])
    images = [
        Job(file, folder / "JPEGImages" / f"{name}.jpg")
        for name, file in sources.first(IMAGE, "id").items()
        if name in needed
    ]
    masks = [
        Job(file, folder / "SegmentationClass" / f"{name}.png")
        for name, file in sources.first(_MASK, "id").items()
        if name in own
    ]
    runner.run(images + masks, "images, official masks")
    jobs = []
    for name in sorted(names):
        image = folder / "JPEGImages" / f"{name}.jpg"
        target = folder / "SegmentationClassAug" / f"{name}.png"
        mask = folder / "SegmentationClass" / f"{name}.png"
        if name in own and mask.is_file():  # of VOC's own images, never SBD's labels
            jobs.append(Job(File(str(mask)), target, partial(copy_mask, image)))
        elif name not in own and name in sbd:
            jobs.append(Job(sbd[name], target, partial(convert_sbd, image)))
    runner.run(jobs, "labels")
    lists |= {"train_aug": sorted(aug), "trainval_aug": sorted(names) if aug else []}
    return [_split(folder, name, lists[name]) for name in COUNTS]


def copy_mask(image: Path, content: Content, target: Path) -> None:
    """An official mask as it is, if it is sound and of its image's size."""
    labels = read_png(content)
    map_labels(labels, _VALUES, "a VOC label (0 to 20, 255)")
    require_size(labels, image)
    place(content, target)


def convert_sbd(image: Path, content: Content, target: Path) -> None:
    """A palette PNG of SBD's ``GTcls.Segmentation``."""
    truth = require_variable(read_mat(content, "GTcls"), "GTcls")
    if truth.dtype.names is None or "Segmentation" not in truth.dtype.names:
        raise ValueError("GTcls has no field Segmentation; is it a file of SBD's folder inst?")
    labels = map_labels(truth[0, 0]["Segmentation"], _SBD_VALUES, "an SBD label (0 to 20)")
    save_labels(labels, voc.COLORS, image, target)


def _stage_lists(sources: Sources, folder: Path, runner: Runner) -> dict[str, list[str]]:
    segmentation = folder / "ImageSets" / "Segmentation"
    files = sources.first(_LIST, "split")
    runner.run([Job(f, segmentation / f"{split}.txt") for split, f in files.items()], "lists")
    return {s: read_list(segmentation / f"{s}.txt") for s in ("train", "val", "test")}


def _sbd_names(sources: Sources) -> set[str]:
    """All names of SBD's lists, which lie next to its folder ``cls``; empty without both lists."""
    bases = {
        (file.archive, file.folder.rpartition("/")[0]) for _, file in sources.matching(_SBD_LABEL)
    }
    lists = {
        match["split"]: file.lines()
        for match, file in sources.matching(_SBD_LIST)
        if (file.archive, file.folder) in bases
    }
    return {*lists["train"], *lists["val"]} if len(lists) == 2 else set()


def _split(folder: Path, name: str, names: list[str]) -> Split:
    pairs: list[tuple[Path, Path | None]] = [
        (
            folder / "JPEGImages" / f"{n}.jpg",
            None if name == "test" else folder / "SegmentationClassAug" / f"{n}.png",
        )
        for n in names
    ]
    hints = ["SBD's lists were not found: benchmark.tgz, or cls/ next to train.txt and val.txt"]
    return Split(
        name,
        COUNTS[name],
        pairs,
        optional=name == "test",
        hints=hints if name.endswith("_aug") and not names else (),
    )
