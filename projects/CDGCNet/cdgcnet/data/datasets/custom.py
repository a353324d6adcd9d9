"""Own data, defined in a config: folders of images and labels, and a class list.

docs/own_data.md is the guide. The values in label files are called "raw"; training sees class ids,
which are the positions in the class list.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdgcnet.data.datasets.catalog import (
    IGNORE_LABEL,
    UNKNOWN_LABEL,
    color_map,
    look_up_table,
    register,
)
from cdgcnet.data.datasets.pairing import PairingRule, read_split, shown
from cdgcnet.data.decoding import open_file

if TYPE_CHECKING:
    from detectron2.config import CfgNode

KEY = "DATASETS.FOLDERS"
REQUIRED = ("NAME", "IMAGES", "CLASSES")
OF_LABELS = ("LABEL_SUFFIX", "IDS", "IGNORE")  # keys that need LABELS
OPTIONAL = ("LABELS", "IMAGE_SUFFIX", "RECURSIVE", "SPLIT", *OF_LABELS)
MAX_CLASSES = UNKNOWN_LABEL  # class ids 0 to 253: 254 marks unknown values, 255 ignored ones

Color = tuple[int, int, int]

_COLORED = re.compile(r"(.*?)((?:\s+-?\d+){3})", re.ASCII)


# ---------------------------------------------------------------- the class list


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped and without empty ones.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing or not UTF-8 text.
    """
    try:
        with open_file(path) as file:
            text = file.read().decode("utf-8-sig")  # Windows editors write a mark at the start
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable UTF-8 text file ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_classes(lines: Sequence[str]) -> tuple[list[str], list[Color]]:
    """Names and RGB colors from lines "NAME" or "NAME R G B"; the position is the class id.

    Raises:
        ValueError: naming the line, for a bad color, a missing or repeated name, or a bad count.
    """
    if not 1 <= len(lines) <= MAX_CLASSES:
        raise ValueError(f"{len(lines)} classes; expected 2 to {MAX_CLASSES}")
    defaults = color_map(len(lines) + 1)[1:]  # its first color, black, would hide a class
    names: list[str] = []
    colors: list[Color] = []
    for number, line in enumerate(lines, start=1):
        name, color = line, defaults[number - 1]
        if match := _COLORED.fullmatch(f" {line}"):
            red, green, blue = (int(word) for word in match[2].split())
            name, color = match[1].strip(), (red, green, blue)
            if not name:
                raise ValueError(f"class {number}, {line!r}, is a color without a name")
            if not all(0 <= c <= 255 for c in color):
                raise ValueError(f"class {number}, {line!r}: expected a color R G B of 0 to 255")
        if name in names:
            raise ValueError(f"classes {names.index(name) + 1} and {number} are both {name!r}")
        names.append(name)
        colors.append(color)
    if len(names) == 1:
        raise ValueError(
            f"{names[0]!r} is the only class; expected 2 to {MAX_CLASSES}, because with a single "
            "class every prediction is right. Add a class for everything else, such as background"
        )
    return names, colors


def label_lut(ids: Sequence[int], ignored: Iterable[int]) -> bytes | None:
    """256 class ids, one for each raw value; None where raw values are class ids already.

    Args:
        ids: the raw value of each class.
        ignored: raw values that become 255.
    """
    if list(ids) == list(range(len(ids))) and set(ignored) == {IGNORE_LABEL}:
        return None
    return look_up_table({value: class_id for class_id, value in enumerate(ids)}, ignored)


# ---------------------------------------------------------------- one entry of the config


@dataclass(frozen=True)
class FolderSet:
    """One checked entry of DATASETS.FOLDERS; only its class list has been read so far."""

    where: str  # key, position and name, for messages
    name: str
    rule: PairingRule
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

    def _pairs(self) -> list[tuple[str, str | None]]:
        """(image, label) of every sample; label None only in a dataset without labels."""
        rule = self.rule
        if self.split is None:
            images = rule.image_names()
            pairs: list[tuple[str, str | None]] = [(image, None) for image in images]
        else:
            try:
                images = rule.image_names()
            except ValueError:
                images = []  # the split file may list paths in subfolders
            pairs = list(read_split(read_lines(self.split), self.split, rule, images))
        if rule.labels is None:
            return pairs
        self._require(rule.labels, "LABELS")
        # Labels that the split file names need no rule.
        by_rule = rule.find_labels([*images, *(i for i, label in pairs if label is None)])
        pairs = [(image, label or by_rule[image]) for image, label in pairs]
        self._check_pairs(pairs, by_rule)
        return pairs

    def _check_pairs(
        self, pairs: Sequence[tuple[str, str | None]], by_rule: dict[str, str | None]
    ) -> None:
        """Refuse images without a label, and labels that belong to no image.

        Raises:
            FileNotFoundError: naming the first of them and what may be wrong.
        """
        rule = self.rule
        missing = [image for image, label in pairs if label is None]
        if missing:
            taken = {label for _, label in pairs if label is not None}
            hint = rule.hint(missing[0], [image for image, _ in pairs], taken)
            raise FileNotFoundError(
                f"{self.where}: {len(missing)} of {len(pairs)} images have no label in "
                f"{rule.labels}: {shown([rule.stem(i) + rule.label_suffix for i in missing])} "
                f"(image stem + LABEL_SUFFIX {rule.label_suffix!r}); "
                f"{hint + '; otherwise ' if hint else ''}add them, or list the labeled images in "
                "a SPLIT file"
            )
        used = {label for _, label in pairs} | set(by_rule.values())
        unused = [label for label in rule.label_names() if label not in used]
        if unused:
            problem = (
                f"{self.where}: {len(unused)} labels in {rule.labels} have no image in "
                f"{rule.images}: {shown(unused)}"
            )
            if self.split is None:
                raise FileNotFoundError(
                    f"{problem}; add the images, or list those to use in a SPLIT file"
                )
            logging.getLogger(__name__).warning(problem)

    def load(self) -> list[dict]:
        """Detectron2 dicts, sorted by file name or in the order of SPLIT.

        Raises:
            FileNotFoundError, ValueError: naming the entry, the file and what is wrong with it.
        """
        rule = self.rule
        self._require(rule.images, "IMAGES")
        try:
            pairs = self._pairs()
        except (FileNotFoundError, ValueError) as error:
            if str(error).startswith(self.where):
                raise
            raise type(error)(f"{self.where}: {error}") from error
        dicts = []
        for image, label in pairs:
            sample: dict[str, Any] = {
                "file_name": str(rule.images / image),
                "image_id": rule.stem(image),
            }
            if rule.labels is not None and label is not None:
                sample["sem_seg_file_name"] = str(rule.labels / label)
                if self.lut is not None:
                    sample["sem_seg_lut"] = self.lut
            dicts.append(sample)
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
        try:
            return read_lines(root / Path(value).expanduser())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; relative paths are below the data root, DETECTRON2_DATASETS"
            ) from error
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
    for key in ("NAME", "IMAGES", "LABELS", "IMAGE_SUFFIX", "LABEL_SUFFIX", "SPLIT"):
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

    recursive = entry.get("RECURSIVE", False)
    if not isinstance(recursive, bool):
        raise ValueError(f"{where}: RECURSIVE is {recursive!r}; expected True or False")
    images = place("IMAGES")
    assert images is not None
    rule = PairingRule(
        images,
        place("LABELS"),
        entry.get("IMAGE_SUFFIX", ""),
        entry.get("LABEL_SUFFIX", ".png"),
        recursive,
    )
    _check_suffixes(rule, where, pairs_listed="SPLIT" in entry)
    lut = label_lut(ids, ignored)
    return FolderSet(where, entry["NAME"], rule, place("SPLIT"), classes, colors, ids, lut)


def _check_suffixes(rule: PairingRule, where: str, pairs_listed: bool) -> None:
    for key, suffix in (("IMAGE_SUFFIX", rule.image_suffix), ("LABEL_SUFFIX", rule.label_suffix)):
        if "/" in suffix or "\\" in suffix:
            raise ValueError(
                f"{where}: {key} is {suffix!r}; expected the end of a file name such as "
                "'.png' or '_labels.png'"
            )
    if rule.label_suffix.lower().endswith((".jpg", ".jpeg")):
        raise ValueError(
            f"{where}: LABEL_SUFFIX is {rule.label_suffix!r}; expected a PNG file, because JPEG "
            "changes values"
        )
    if rule.images == rule.labels and not pairs_listed:
        if not rule.image_suffix:
            raise ValueError(
                f"{where}: IMAGES and LABELS are both {rule.images}; give IMAGE_SUFFIX and "
                "LABEL_SUFFIX to tell them apart, or use two folders"
            )
        if rule.image_suffix.lower() == rule.label_suffix.lower():
            raise ValueError(
                f"{where}: IMAGE_SUFFIX and LABEL_SUFFIX are both {rule.image_suffix!r} in one "
                "folder, so images and labels cannot be told apart"
            )


def folder_classes(cfg: CfgNode, name: str) -> Sequence[str]:
    """The classes that DATASETS.FOLDERS gives a dataset; () where they cannot be read here."""
    from cdgcnet.data.datasets import datasets_root

    for position, entry in enumerate(cfg.DATASETS.FOLDERS):
        if isinstance(entry, dict) and entry.get("NAME") == name:
            with suppress(OSError, ValueError):
                return _parse(entry, position, datasets_root(None)).classes
    return ()


def register_folders(cfg: CfgNode, root: Path | None = None) -> None:
    """Register the datasets of DATASETS.FOLDERS: all of them, or none if one has an error.

    It may be called again, also with another config; the last call counts. Class lists are read
    now, folders when a dataset is used.

    Args:
        cfg: its DATASETS.FOLDERS and MODEL.SEM_SEG_HEAD.IGNORE_VALUE are read.
        root: the folder of relative paths; by default the data root.

    Raises:
        FileNotFoundError, ValueError: naming the entry, its key and what was expected.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

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
