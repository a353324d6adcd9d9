"""What an audit looks for: in one image with its label, and in a set as a whole.

Shape shorthand: M classes.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cdgcnet.data.audit import issues as findings
from cdgcnet.data.audit.issues import Problem, Sample
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels

_SHOWN_VALUES = 8


@dataclass(frozen=True)
class Rules:
    """What the labels of a set may hold.

    Attributes:
        num_classes: M; labels are 0 … M - 1.
        ignore_label: or this.
        grays: what the colors of palettes become when a label is converted to gray.
        labeled: whether the set has labels.
    """

    num_classes: int
    ignore_label: int
    grays: frozenset[int]
    labeled: bool


def gray_values(colors: Sequence[Sequence[int]]) -> frozenset[int]:
    """The brightness of RGB colors, as Pillow and OpenCV convert to gray: they round apart."""
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
    mode = ""
    colors: dict[int, tuple[int, ...]] = {}
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
        except (ValueError, OSError, Image.DecompressionBombError) as error:
            kind = findings.COLOR if mode.startswith(("RGB", "CMYK", "YCbCr")) else findings.LABEL
            problems.append(Problem(kind, label, _reason(error, label)))
    elif rules.labeled:
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
        palette={
            value: colors[value]
            for value, label_id in zip(raw.tolist(), mapped.tolist(), strict=True)
            if label_id < rules.num_classes and value in colors
        },
        problems=problems,
    )


def digest_of(dataset_dict: dict) -> str:
    """SHA-1 of the bytes of the image file: equal files, whatever their names."""
    return hashlib.sha1(Path(dataset_dict["file_name"]).read_bytes()).hexdigest()


def size_of(dataset_dict: dict) -> int | None:
    """Bytes of the image file; None if there is no such file."""
    try:
        return Path(dataset_dict["file_name"]).stat().st_size
    except OSError:
        return None


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return str(error).removeprefix(f"{path}: ")


def _header(path: str) -> tuple[str, dict[int, tuple[int, ...]]]:
    """Pillow's mode of an image file, and the colors of its palette; pixels are not decoded."""
    with Image.open(path) as image:
        order, palette = ("", b"") if image.palette is None else image.palette.getdata()
        known = len(palette) // 3 if order == "RGB" else 0
        return image.mode, {i: tuple(palette[3 * i : 3 * i + 3]) for i in range(known)}


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
    gray = mode == "L" and rules.grays.issuperset(values)
    return Problem(findings.GREY if gray else findings.VALUE, label, details)


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
    """Palette PNGs in which an id has another color than in most of the others."""
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
                    f"id {value} has the color {color}, but {other} in {times} of "
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
