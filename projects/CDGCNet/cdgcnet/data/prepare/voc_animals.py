"""Six classes of PASCAL VOC 2012 on which context decides, and background, as small images.

The images are those of train_aug and val that are in the Animal-Pose data set (Cao et al., ICCV
2019) too. Sizes, filters and JPEG quality are those of the data that ``results/`` was measured on.
"""

from collections.abc import Collection
from functools import partial
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cdgcnet.data.datasets import voc
from cdgcnet.data.image_folder import images_in
from cdgcnet.data.image_io import decode_image, read_image
from cdgcnet.data.prepare.archives import Content, Sources
from cdgcnet.data.prepare.completeness import Split, read_list
from cdgcnet.data.prepare.conversion import Job, Runner
from cdgcnet.data.prepare.label_formats import map_labels, read_png, save_labels
from cdgcnet.data.prepare.voc import AUG_LABEL, IMAGE
from cdgcnet.utils.io import atomic_write

FOLDER = "voc_animals"
OFFICIAL = ("VOCtrainval_11-May-2012.tar",)
WANTED = (IMAGE, AUG_LABEL)
LOOKED_FOR = """  a folder VOC2012 with JPEGImages/*.jpg and SegmentationClassAug/*.png, as
    `cdgcnet prepare voc-aug` makes it"""
COUNTS = {"train": 3131, "val": 222}
CLASSES = ("background", "cat", "cow", "dog", "horse", "person", "sheep")

_COLORS = [voc.COLORS[voc.NAMES.index(name)] for name in CLASSES]
_VALUES = np.full(256, -1)
_VALUES[[*range(len(voc.NAMES)), 255]] = 255
_VALUES[[voc.NAMES.index(name) for name in CLASSES]] = range(len(CLASSES))
_SHORTER_SIDE = 180  # pixels
_JPEG_QUALITY = 90


def prepare(sources: Sources, root: Path, runner: Runner) -> list[Split]:
    """Make ``root/voc_animals``.

    Raises:
        ValueError: without photos or labels of VOC 2012, or if the folder holds other images or
            other classes.
    """
    folder = root / FOLDER
    photos, labels = sources.first(IMAGE, "id"), sources.first(AUG_LABEL, "id")
    if not photos or not labels:
        raise sources.nothing(f"the {'labels' if photos else 'photos'} of VOC 2012", LOOKED_FOR)
    split_of = {name: split for split in COUNTS for name in listed_names(split)}
    images = {n: folder / "images" / split / f"{n}.jpg" for n, split in split_of.items()}
    targets = {n: folder / "labels" / split / f"{n}.png" for n, split in split_of.items()}
    refuse_other_images(folder / "images", set(images.values()))
    write_classes(folder / "classes.txt", runner.overwrite)
    runner.run([Job(photos[n], images[n], reduce_photo) for n in images if n in photos], "images")
    jobs = [
        Job(labels[n], targets[n], partial(reduce_labels, images[n]))
        for n in targets
        if n in labels and images[n].is_file()
    ]
    runner.run(jobs, "labels")
    return [
        Split(split, count, [(images[n], targets[n]) for n in listed_names(split)])
        for split, count in COUNTS.items()
    ]


def listed_names(split: str) -> list[str]:
    """Names of VOC's images in a split, from the lists of this package."""
    lists = files("cdgcnet.data.prepare") / "lists"
    return (lists / f"voc_animals_{split}.txt").read_text("utf-8").split()


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """The size (h, w) with a shorter side of 180; halves go to the even number, as in the records.

    (Detectron2 rounds them up: 288 x 500 would become 180 x 313, not 180 x 312.)
    """
    scale = _SHORTER_SIDE / min(height, width)
    return round(height * scale), round(width * scale)


def reduce_photo(content: Content, target: Path) -> None:
    """A small JPEG of a photo; each pixel is the mean of the area that it covers."""
    photo = decode_image(content, "") if isinstance(content, bytes) else read_image(content)
    height, width = reduced_size(*photo.shape[:2])
    small = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
    with atomic_write(target) as tmp_path:
        Image.fromarray(small).save(tmp_path, quality=_JPEG_QUALITY)


def reduce_labels(image: Path, content: Content, target: Path) -> None:
    """A small palette PNG of the seven classes; all other classes and the border are 255."""
    labels = map_labels(read_png(content), _VALUES, "a VOC label (0 to 20, 255)")
    height, width = reduced_size(*labels.shape)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    save_labels(labels, _COLORS, image, target)


def refuse_other_images(folder: Path, expected: Collection[Path]) -> None:
    """Refuse a folder of other data: training reads all of its images.

    Raises:
        ValueError: naming the first image that is not expected.
    """
    found = images_in(folder, recursive=True) if folder.is_dir() else []
    others = [path for path in found if path not in expected]
    if others:
        raise ValueError(
            f"{others[0]}: not an image of VOC animals ({len(others)} such images); move them "
            "away, or name another --root"
        )


def write_classes(path: Path, overwrite: bool) -> None:
    """Write names and colors of the classes, unless they are there already.

    Raises:
        ValueError: if the file holds something else, unless ``overwrite``.
    """
    lines = [" ".join(map(str, (n, *c))) for n, c in zip(CLASSES, _COLORS, strict=True)]
    there = read_list(path)
    if there == lines:
        return
    if there and not overwrite:
        raise ValueError(
            f"{path}: holds other classes than {', '.join(CLASSES)}; move the file away, or "
            "replace it with --overwrite"
        )
    with atomic_write(path) as tmp_path:
        tmp_path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
