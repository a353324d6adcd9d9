"""Own data from the config: folders of images and label PNGs, DATASETS.FOLDERS.

docs/own_data.md is the guide. Labels on disk hold "raw" values; training sees class ids, the
positions in the class list.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from cdgcnet.data.datasets.catalog import IGNORE_LABEL, look_up_table, register
from cdgcnet.data.datasets.class_list import Color, parse_classes, read_lines

KEY = "DATASETS.FOLDERS"
REQUIRED = ("NAME", "IMAGES", "CLASSES")
OF_LABELS = ("LABEL_SUFFIX", "IDS", "IGNORE")  # say how LABELS is read
OPTIONAL = ("LABELS", "SPLIT", *OF_LABELS)
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"}


def label_lut(ids: Sequence[int], ignored: Iterable[int]) -> bytes | None:
    """256 class ids, one per raw value; None where raw values are class ids already.

    Args:
        ids: the raw value of each class.
        ignored: raw values that become 255.
    """
    if list(ids) == list(range(len(ids))) and set(ignored) == {IGNORE_LABEL}:
        return None
    return look_up_table({value: class_id for class_id, value in enumerate(ids)}, ignored)


def list_images(folder: Path) -> list[Path]:
    """Images directly in a folder, sorted; hidden files are none.

    Raises:
        ValueError: for an empty folder, or two images that would share a label.
    """
    by_stem: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{folder} holds {other.name} and {path.name}: two images of one stem would share "
                "their label; rename one"
            )
    if not by_stem:
        raise ValueError(
            f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); subfolders are not "
            "searched"
        )
    return list(by_stem.values())


def select(images: Sequence[Path], split: Path) -> list[Path]:
    """The images that a text file names, by file name or stem, in its order.

    Raises:
        FileNotFoundError, ValueError: for a missing or empty list, an entry without an image or
            a second one for the same image.
    """
    known = {image.stem: image for image in images} | {image.name: image for image in images}
    chosen: dict[Path, str] = {}
    for entry in read_lines(split):
        if entry not in known:
            raise ValueError(
                f"{split} names {entry!r}, but {images[0].parent} has no such image; expected "
                f"a file name or its stem, such as {images[0].stem!r}"
            )
        image = known[entry]
        if image in chosen:
            raise ValueError(f"{split} names {image.name} twice ({chosen[image]!r}, {entry!r})")
        chosen[image] = entry
    if not chosen:
        raise ValueError(f"{split} names no image")
    return list(chosen)


@dataclass(frozen=True)
class FolderSet:
    """One checked entry of DATASETS.FOLDERS; nothing but its class list has been read."""

    where: str  # for messages: key, position, name
    name: str
    images: Path
    labels: Path | None
    label_suffix: str
    split: Path | None
    classes: list[str]
    colors: list[Color]
    ids: list[int]  # the raw value of each class
    lut: bytes | None

    def _require(self, folder: Path, key: str) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{self.where}: {key}: there is no folder {folder.absolute()}; relative paths are "
                "below the data root, DETECTRON2_DATASETS"
            )

    def _labels_of(self, images: Sequence[Path], chosen: Sequence[Path]) -> list[Path]:
        """One label file for each chosen image."""
        assert self.labels is not None
        self._require(self.labels, "LABELS")
        there = {p.name for p in self.labels.iterdir() if not p.name.startswith(".")}
        names = [image.stem + self.label_suffix for image in chosen]
        missing = [name for name in names if name not in there]
        if missing:
            raise FileNotFoundError(
                f"{self.where}: {len(missing)} of {len(chosen)} images have no label in "
                f"{self.labels}: {', '.join(missing[:3])}{', …' if missing[3:] else ''} (image "
                f"stem + LABEL_SUFFIX {self.label_suffix!r}); add them, or list the labeled "
                "images in a SPLIT file"
            )
        expected = {image.stem + self.label_suffix for image in images}
        unused = sorted(n for n in there - expected if n.endswith(self.label_suffix))
        if unused:
            problem = (
                f"{self.where}: {len(unused)} labels in {self.labels} have no image in "
                f"{self.images}: {', '.join(unused[:3])}{', …' if unused[3:] else ''}"
            )
            if self.split is None:
                raise FileNotFoundError(
                    f"{problem}; add the images, or list those to use in a SPLIT file"
                )
            logging.getLogger(__name__).warning(problem)
        return [self.labels / name for name in names]

    def load(self) -> list[dict]:
        """Detectron2 dicts, sorted by file name or in the order of SPLIT.

        Raises:
            FileNotFoundError, ValueError: naming entry, file and what is wrong with it.
        """
        self._require(self.images, "IMAGES")
        try:
            images = list_images(self.images)
            chosen = select(images, self.split) if self.split else images
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{self.where}: {error}") from error
        dicts: list[dict] = [{"file_name": str(i), "image_id": i.stem} for i in chosen]
        if self.labels is not None:
            for entry, label in zip(dicts, self._labels_of(images, chosen), strict=True):
                entry["sem_seg_file_name"] = str(label)
                if self.lut is not None:
                    entry["sem_seg_lut"] = self.lut
        return dicts


def _raw_values(entry: dict, key: str, default: list[int], where: str) -> list[int]:
    values = entry.get(key, default)
    if (
        not isinstance(values, (list, tuple))
        or not all(type(v) is int and 0 <= v <= 255 for v in values)
        or len(set(values)) != len(values)
    ):
        raise ValueError(
            f"{where}: {key} is {values!r}; expected a list of different whole numbers, 0 to 255"
        )
    return list(values)


def _class_lines(value: Any, root: Path) -> list[str]:
    if isinstance(value, str):
        return read_lines(root / Path(value).expanduser())
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(name, str) and name.strip() for name in value
    ):
        raise ValueError(
            f"found {value!r}; expected a text file or a list of names (quote yes, no and numbers)"
        )
    return [name.strip() for name in value]


def _parse(entry: Any, position: int, root: Path) -> FolderSet:
    """Check one entry as far as that needs no folder.

    Raises:
        FileNotFoundError, ValueError: naming the entry, its key and what was expected.
    """
    where = f"{KEY}[{position}]"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r}; expected a mapping {{NAME: …, IMAGES: …, …}}")
    name = entry.get("NAME")
    where += f" ({name})" if name else ""
    for key in entry:
        if key not in (*REQUIRED, *OPTIONAL):
            raise ValueError(f"{where}: unknown key {key!r}; there are {(*REQUIRED, *OPTIONAL)}")
    for key in REQUIRED:
        if key not in entry:
            raise ValueError(f"{where}: {key} is missing")
    for key in ("NAME", "IMAGES", "LABELS", "LABEL_SUFFIX", "SPLIT"):
        if key in entry and not (isinstance(entry[key], str) and entry[key].strip()):
            raise ValueError(f"{where}: {key} is {entry[key]!r}; expected a text")
    if not re.fullmatch(r"[\w.-]+", entry["NAME"]) or entry["NAME"].startswith("cdgc_"):
        raise ValueError(
            f"{where}: NAME is {name!r}; expected letters, digits, '_', '-' and '.', and another "
            "beginning than 'cdgc_', which is for the built-in datasets"
        )
    for key in OF_LABELS:
        if key in entry and "LABELS" not in entry:
            raise ValueError(f"{where}: {key} is given, but no LABELS for it")
    try:
        classes, colors = parse_classes(_class_lines(entry["CLASSES"], root))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{where}: CLASSES: {error}") from error
    ids = _raw_values(entry, "IDS", list(range(len(classes))), where)
    if len(ids) != len(classes):
        raise ValueError(f"{where}: IDS has {len(ids)} values for {len(classes)} classes")
    ignored = _raw_values(entry, "IGNORE", [IGNORE_LABEL], where)
    if both := sorted(set(ids) & set(ignored)):
        raise ValueError(f"{where}: {both} are classes in IDS and also in IGNORE {ignored}")

    def place(key: str) -> Path | None:
        return root / Path(entry[key]).expanduser() if key in entry else None

    images, labels = place("IMAGES"), place("LABELS")
    assert images is not None
    suffix = entry.get("LABEL_SUFFIX", ".png")
    if "/" in suffix or "\\" in suffix or suffix.lower().endswith((".jpg", ".jpeg")):
        raise ValueError(
            f"{where}: LABEL_SUFFIX is {suffix!r}; expected the end of a file name such as "
            "'.png' or '_labels.png', and not JPEG, which changes values"
        )
    if images == labels:
        raise ValueError(
            f"{where}: IMAGES and LABELS are both {images}; put images and labels into two folders"
        )
    return FolderSet(
        where, entry["NAME"], images, labels, suffix, place("SPLIT"),
        classes, colors, ids, label_lut(ids, ignored),
    )  # fmt: skip


def register_folders(cfg: CfgNode, root: Path | None = None) -> None:
    """Register the datasets of DATASETS.FOLDERS, all of them or, at an error, none.

    May be called again, also with another config: the last call counts. Class lists are read now,
    the folders when a dataset is used.

    Args:
        cfg: its DATASETS.FOLDERS and MODEL.SEM_SEG_HEAD.IGNORE_VALUE are read.
        root: what relative paths are below; the data root by default.

    Raises:
        FileNotFoundError, ValueError: naming the entry, its key and what was expected.
    """
    from cdgcnet.data.datasets import datasets_root

    base = datasets_root(root)
    sets: dict[str, FolderSet] = {}
    for position, entry in enumerate(cfg.DATASETS.FOLDERS):
        one = _parse(entry, position, base)
        if one.name in sets:
            raise ValueError(f"{one.where}: NAME is that of {sets[one.name].where}; rename one")
        if one.name in DatasetCatalog.list() and MetadataCatalog.get(one.name).get("origin") != KEY:
            raise ValueError(f"{one.where}: NAME belongs to another dataset; choose another")
        sets[one.name] = one
    ignore_value = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if sets and ignore_value != IGNORE_LABEL:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}; expected {IGNORE_LABEL} with "
            f"{KEY}, whose key IGNORE lists the raw values to ignore"
        )
    for one in sets.values():
        register(
            one.name, one.load, classes=one.classes, colors=one.colors, ids=one.ids, origin=KEY
        )
