"""Are the files of a data set sound? Every image and label decoded once, and compared.

Shape shorthand: M classes.
"""

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from ..config import load_cfg
from ..datasets import register_all, voc
from ..datasets.folders import register_folders
from ..files import read_image, read_labels
from . import findings
from .audit_page import check_page, write_page
from .findings import Problem, Report, Sample, format_report

# To look at data no device is needed: the config of a GPU training will do anywhere.
ON_CPU = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
_SHOWN_VALUES = 8
# Splits that must share no image with the split of this name.
_COUNTERPARTS = {
    "train": ("val", "test"),
    "train_aug": ("val",),
    "train_extra": ("val",),
    "val": ("train", "train_aug", "train_extra"),
    "test": ("train",),
}


@dataclass(frozen=True)
class Rules:
    """What the labels of a set may hold.

    Attributes:
        num_classes: M; labels are 0 … M - 1.
        ignore_label: or this.
        greys: what the colours of palettes become when a label is converted to grey.
        labelled: whether the set has labels.
    """

    num_classes: int
    ignore_label: int
    greys: frozenset[int]
    labelled: bool


def grey_values(colors: Sequence[Sequence[int]]) -> frozenset[int]:
    """The brightness of RGB colours, as Pillow and OpenCV convert to grey: they round apart."""
    rgb = np.array([colors], np.uint8)
    pillow = np.asarray(Image.fromarray(rgb).convert("L"))
    opencv = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return frozenset([*pillow.ravel().tolist(), *opencv.ravel().tolist()])


# ---------------------------------------------------------------- one image with its label


def inspect(dataset_dict: dict, rules: Rules) -> Sample:
    """Decode an image and its label, and look for whatever is wrong with this pair."""
    image, label = dataset_dict["file_name"], dataset_dict.get("sem_seg_file_name")
    lut = dataset_dict.get("sem_seg_lut")
    problems: list[Problem] = []
    digest, size = "", None
    try:
        digest = digest_of(dataset_dict)
        size = read_image(image).shape[:2]
    except (ValueError, OSError) as error:
        problems.append(Problem(findings.IMAGE, image, _reason(error, image)))
    histogram = np.zeros(256, np.int64)
    mode, colors = "", {}
    if label is not None:
        try:
            mode, colors = _header(label)
            labels = read_labels(label)
            histogram = np.bincount(labels.ravel(), minlength=256)
            if size is not None and labels.shape != size:
                details = (
                    f"label {labels.shape[0]} x {labels.shape[1]}, image {size[0]} x {size[1]} "
                    "(height x width)"
                )
                problems.append(Problem(findings.SIZE, label, details))
        except (ValueError, OSError) as error:
            kind = findings.COLOR if mode.startswith(("RGB", "CMYK", "YCbCr")) else findings.LABEL
            problems.append(Problem(kind, label, _reason(error, label)))
    elif rules.labelled:
        problems.append(Problem(findings.NO_LABEL, image))
    # Raw values that occur, and the class or ignore label each stands for.
    raw = np.flatnonzero(histogram)
    mapped = raw if lut is None else np.frombuffer(lut, np.uint8)[raw].astype(np.int64)
    counts = np.bincount(mapped, weights=histogram[raw], minlength=256).astype(np.int64)
    total, ignored = int(counts.sum()), int(counts[rules.ignore_label])
    wrong = raw[(mapped >= rules.num_classes) & (mapped != rules.ignore_label)]
    if label is not None and len(wrong):
        problems.append(_wrong_values(label, wrong, histogram, mode, rules))
    if label is not None and total and ignored == total:
        problems.append(Problem(findings.EMPTY, label))
    return Sample(
        image=image,
        label=label,
        lut=lut,
        image_id=str(dataset_dict.get("image_id", "")),
        counts=counts[: rules.num_classes].astype(np.uint32),
        ignored=ignored,
        total=total,
        digest=digest,
        palette={v: colors[v] for v in raw.tolist() if v in colors},
        problems=problems,
    )


def digest_of(dataset_dict: dict) -> str:
    """SHA-1 of the bytes of the image file: equal files, whatever their names."""
    return hashlib.sha1(Path(dataset_dict["file_name"]).read_bytes()).hexdigest()


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return str(error).removeprefix(f"{path}: ")


def _header(path: str) -> tuple[str, dict[int, tuple[int, ...]]]:
    """Pillow's mode of an image file, and the colours of its palette."""
    with Image.open(path) as image:
        palette = image.getpalette() or []
        return image.mode, {i: tuple(palette[3 * i : 3 * i + 3]) for i in range(len(palette) // 3)}


def _wrong_values(
    label: str, wrong: np.ndarray, histogram: np.ndarray, mode: str, rules: Rules
) -> Problem:
    values = wrong.tolist()
    pixels = int(histogram[wrong].sum())
    shown = ", ".join(map(str, values[:_SHOWN_VALUES])) + ", …" * (len(values) > _SHOWN_VALUES)
    details = (
        f"{shown} in {pixels} pixels ({100 * pixels / histogram.sum():.1f} %); "
        f"expected 0 to {rules.num_classes - 1} or {rules.ignore_label}"
    )
    grey = mode == "L" and rules.greys.issuperset(values)
    return Problem(findings.GREY if grey else findings.VALUE, label, details)


# ---------------------------------------------------------------- the set as a whole


def find_twins(samples: Sequence[Sample]) -> Iterator[Problem]:
    """Images with the bytes or the name of an earlier one."""
    by_digest: dict[str, Sample] = {}
    by_id: dict[str, Sample] = {}
    for sample in samples:
        twin = by_digest.setdefault(sample.digest, sample) if sample.digest else sample
        namesake = by_id.setdefault(sample.image_id, sample) if sample.image_id else sample
        if twin is not sample:
            yield Problem(findings.TWICE, sample.image, f"the same bytes as {twin.image}")
        elif namesake is not sample:
            details = f"image_id {sample.image_id!r}, as {namesake.image}"
            yield Problem(findings.ID_TWICE, sample.image, details)


def find_shared(
    samples: Sequence[Sample], name: str, dicts: Sequence[dict], digests: Sequence[str]
) -> Iterator[Problem]:
    """Images with the bytes or the name of one in another set.

    Args:
        samples: of the audited set.
        name: of the other set.
        dicts, digests: of the other set; an unreadable file has the digest "".
    """
    by_digest = {digest: d for digest, d in zip(digests, dicts, strict=True) if digest}
    by_id = {str(d["image_id"]): d for d in dicts if "image_id" in d}
    for sample in samples:
        if twin := by_digest.get(sample.digest):
            details = f"the same bytes as {twin['file_name']} of {name}"
            yield Problem(findings.SHARED, sample.image, details)
        elif namesake := by_id.get(sample.image_id):
            details = f"image_id {sample.image_id!r}, as {namesake['file_name']} of {name}"
            yield Problem(findings.SHARED_ID, sample.image, details)


def find_odd_palettes(samples: Sequence[Sample]) -> Iterator[Problem]:
    """Palette PNGs in which an id has another colour than in most of the others."""
    colors: dict[int, Counter] = defaultdict(Counter)
    for sample in samples:
        for value, color in sample.palette.items():
            colors[value][color] += 1
    usual = {value: counter.most_common(1)[0] for value, counter in colors.items()}
    for sample in samples:
        for value, color in sample.palette.items():
            other, times = usual[value]
            if color != other:
                details = (
                    f"id {value} has the colour {color}, but {other} in {times} of "
                    f"{colors[value].total()} files"
                )
                yield Problem(findings.PALETTE, str(sample.label), details)
                break


def find_absent(samples: Sequence[Sample], classes: Sequence[str]) -> Iterator[Problem]:
    """Classes without a single pixel."""
    occurs = np.any([s.counts > 0 for s in samples], axis=0)
    for i, name in enumerate(classes):
        if not occurs[i]:
            yield Problem(findings.ABSENT, f"{i} {name}")


def audit(name: str, against: Sequence[str] | None = None, workers: int = 1) -> Report:
    """Check a registered set.

    Args:
        name: of the set.
        against: sets that must share no image with it; None: its counterparts that are there,
            val for train and so on.
        workers: threads.

    Raises:
        ValueError, FileNotFoundError: for a set that is not registered or not there.
    """
    dicts = _load(name)
    metadata = MetadataCatalog.get(name)
    classes, colors = metadata.stuff_classes, metadata.stuff_colors
    others, notes = _others(name, against)
    rules = Rules(
        num_classes=len(classes),
        ignore_label=metadata.get("ignore_label", 255),
        # VOC's void border is bright in its palette, and belongs to no class.
        greys=grey_values([*colors, *voc.COLORS, (224, 224, 192), (0, 0, 0), (255, 255, 255)]),
        labelled=any("sem_seg_file_name" in d for d in dicts),
    )
    with ThreadPool(max(workers, 1)) as pool:
        found = pool.imap(partial(inspect, rules=rules), dicts)
        samples = list(tqdm(found, desc=name, total=len(dicts), unit="image"))
        problems = [p for s in samples for p in s.problems]
        for other, other_dicts in others.items():
            found = pool.imap(_digest_or_nothing, other_dicts)
            digests = list(tqdm(found, desc=other, total=len(other_dicts), unit="image"))
            problems += find_shared(samples, other, other_dicts, digests)
    problems += find_twins(samples)
    problems += find_odd_palettes(samples)
    if rules.labelled:
        problems += find_absent(samples, classes)
    official = metadata.get("official_count")
    if official is not None and official != len(samples):
        problems.append(Problem(findings.COUNT, name, f"{len(samples)}, officially {official}"))
    return Report(name, classes, colors, samples, problems, notes)


def _digest_or_nothing(dataset_dict: dict) -> str:
    try:
        return digest_of(dataset_dict)
    except OSError:
        return ""  # an audit of its own set reports it


def _load(name: str) -> list[dict]:
    if name not in DatasetCatalog.list():
        ours = sorted(n for n in DatasetCatalog.list() if n.startswith("cdgc_"))
        raise ValueError(
            f"the data set {name!r} is not registered; there are {', '.join(ours)}, and with "
            "--config-file those of its DATASETS.FOLDERS"
        )
    if not MetadataCatalog.get(name).get("stuff_classes"):
        raise ValueError(f"{name} is no set for semantic segmentation: it has no stuff_classes")
    dicts = DatasetCatalog.get(name)
    if not dicts:
        raise ValueError(f"{name} has no images")
    return dicts


def _others(name: str, against: Sequence[str] | None) -> tuple[dict[str, list[dict]], list[str]]:
    """Dicts of the sets to compare with, and notes on what they are."""
    if against is not None:
        if name in against:
            raise ValueError(f"--against {name}: a set shares all its images with itself")
        return {other: _load(other) for other in against}, [
            f"compared with {other}" for other in against
        ]
    others: dict[str, list[dict]] = {}
    notes = []
    for split, counterparts in _COUNTERPARTS.items():
        if not name.endswith(f"_{split}"):
            continue
        for counterpart in counterparts:
            other = f"{name.removesuffix(split)}{counterpart}"
            if other not in DatasetCatalog.list():
                continue
            try:
                others[other] = _load(other)
                notes.append(f"compared with {other}: {len(others[other])} images")
            except FileNotFoundError:
                notes.append(f"not compared with {other}, which is not there (or not whole)")
    return others, notes


# ---------------------------------------------------------------- the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``prepare_data.py audit``."""
    parser.add_argument("name", metavar="NAME", help="registered set, e.g. cdgc_voc_train_aug")
    parser.add_argument("--config-file", default="", help="YAML whose DATASETS.FOLDERS name it")
    parser.add_argument("--root", type=Path, help="data root, by default DETECTRON2_DATASETS")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="NAME2",
        help="sets that must share no image with it (default: val for train and so on)",
    )
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page with pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads")


def main(args: argparse.Namespace) -> int:
    """Audit a set and print the report; 1 if there are errors, 0 otherwise.

    Raises:
        ValueError, OSError: for wrong arguments, or a set that is not there.
    """
    if args.html is not None:
        check_page(args.html, args.overwrite)
    register_all(args.root)
    if args.config_file:
        register_folders(load_cfg(args.config_file, ON_CPU), args.root)
    report = audit(args.name, args.against, args.workers)
    print(format_report(report))
    if args.html is not None:
        write_page(report, args.html)
        print(f"page: {args.html}")
    return 1 if report.number(errors=True) else 0
