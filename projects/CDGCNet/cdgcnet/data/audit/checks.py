"""What an audit looks for: in one image with its label, and in a dataset as a whole.

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

from cdgcnet.data.audit.issues import Issue, IssueType, Sample
from cdgcnet.data.decoding import MAX_PIXELS, open_file, open_image, read_bytes
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import VALUE_MODES, read_labels
from cdgcnet.data.label_spec import LabelSpec

_SHOWN_VALUES = 8


@dataclass(frozen=True)
class Rules:
    """What the files of a dataset may hold.

    Attributes:
        spec: of the labels.
        grays: what the colors of palettes become when a label is converted to gray.
        labeled: whether the dataset has labels.
        max_pixels: height x width of an image or label at most.
    """

    spec: LabelSpec
    grays: frozenset[int]
    labeled: bool
    max_pixels: int = MAX_PIXELS


def gray_values(colors: Sequence[Sequence[int]]) -> frozenset[int]:
    """The brightness of RGB colors, as Pillow and OpenCV convert to gray: they round apart."""
    rgb = np.array([colors], np.uint8)
    pillow = np.asarray(Image.fromarray(rgb).convert("L"))
    opencv = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return frozenset([*pillow.ravel().tolist(), *opencv.ravel().tolist()])


# ---------------------------------------------------------------- one image with its label


def inspect(dataset_dict: dict, rules: Rules) -> Sample:
    """Decode an image and its label, and look for everything that is wrong with the pair."""
    image, label = dataset_dict["file_name"], dataset_dict.get("sem_seg_file_name")
    spec = rules.spec.for_sample(dataset_dict)
    issues: list[Issue] = []
    digest, size = "", None
    try:
        digest = digest_of(dataset_dict)
        size = read_image(image, max_pixels=rules.max_pixels).shape[:2]
    except (ValueError, OSError) as error:
        issues.append(Issue(IssueType.UNREADABLE_IMAGE, image, _reason(error, image)))
    histogram = np.zeros(256, np.int64)
    mode = ""
    colors: dict[int, tuple[int, ...]] = {}
    if label is not None:
        try:
            mode, colors = _header(label, rules.max_pixels)
            labels = read_labels(label, rules.max_pixels)
            histogram = np.bincount(labels.ravel(), minlength=256)
            if size is not None and labels.shape != size:
                details = (
                    f"label {labels.shape[0]} x {labels.shape[1]}, image {size[0]} x {size[1]} "
                    "(height x width)"
                )
                issues.append(Issue(IssueType.SIZE_MISMATCH, label, details))
        except (ValueError, OSError) as error:
            color = mode and mode not in VALUE_MODES
            issue_type = IssueType.COLOR_LABEL if color else IssueType.UNREADABLE_LABEL
            issues.append(Issue(issue_type, label, _reason(error, label)))
    elif rules.labeled:
        issues.append(Issue(IssueType.MISSING_LABEL, image))
    raw = np.flatnonzero(histogram)  # values that occur in the file
    ids = spec.ids[raw].astype(np.int64)
    counts = np.bincount(ids, weights=histogram[raw], minlength=256).astype(np.int64)
    total, ignored = int(counts.sum()), int(counts[spec.ignore_label])
    wrong = raw[spec.forbidden[raw]]
    if label is not None and len(wrong):
        issues.append(_unknown_values(label, wrong, histogram, mode, rules))
    if label is not None and total and ignored == total:
        issues.append(Issue(IssueType.ALL_IGNORED, label))
    return Sample(
        image=image,
        label=label,
        lut=spec.lut,
        image_id=str(dataset_dict.get("image_id", "")),
        counts=counts[: spec.num_classes].astype(np.uint32),
        ignored=ignored,
        total=total,
        digest=digest,
        palette={
            value: colors[value]
            for value, label_id in zip(raw.tolist(), ids.tolist(), strict=True)
            if label_id < spec.num_classes and value in colors
        },
        issues=issues,
    )


def digest_of(dataset_dict: dict) -> str:
    """SHA-1 of the bytes of the image file: equal files, whatever their names.

    Raises:
        FileNotFoundError, UnusableImageError: naming a file that is missing, unreadable or no
            regular file.
    """
    return hashlib.sha1(read_bytes(dataset_dict["file_name"], "image")).hexdigest()


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


def _header(path: str, max_pixels: int) -> tuple[str, dict[int, tuple[int, ...]]]:
    """Pillow's mode of a label image, and the colors of its palette; pixels are not decoded."""
    with open_file(path) as file, open_image(file, path, "label image", max_pixels) as image:
        order, palette = ("", b"") if image.palette is None else image.palette.getdata()
        known = len(palette) // 3 if order == "RGB" else 0
        return image.mode, {i: tuple(palette[3 * i : 3 * i + 3]) for i in range(known)}


def _unknown_values(
    label: str, wrong: np.ndarray, histogram: np.ndarray, mode: str, rules: Rules
) -> Issue:
    values = wrong.tolist()
    pixels = int(histogram[wrong].sum())
    shown = ", ".join(map(str, values[:_SHOWN_VALUES])) + ", …" * (len(values) > _SHOWN_VALUES)
    details = (
        f"{shown} in {pixels} pixels ({100 * pixels / histogram.sum():.1f} %); "
        f"expected 0 to {rules.spec.num_classes - 1} or {rules.spec.ignore_label}"
    )
    gray = mode == "L" and rules.grays.issuperset(values)
    return Issue(IssueType.GRAY_PALETTE if gray else IssueType.UNKNOWN_VALUE, label, details)


# ---------------------------------------------------------------- the dataset as a whole


def find_twins(samples: Sequence[Sample]) -> Iterator[Issue]:
    """Images with the bytes or the name of an earlier one."""
    by_digest: dict[str, Sample] = {}
    by_id: dict[str, Sample] = {}
    for sample in samples:
        twin = by_digest.setdefault(sample.digest, sample) if sample.digest else sample
        namesake = by_id.setdefault(sample.image_id, sample) if sample.image_id else sample
        if twin is not sample:
            yield Issue(IssueType.DUPLICATE_IMAGE, sample.image, f"the same bytes as {twin.image}")
        elif namesake is not sample:
            details = f"image_id {sample.image_id!r}, as {namesake.image}"
            yield Issue(IssueType.DUPLICATE_NAME, sample.image, details)


def find_shared(
    samples: Sequence[Sample], name: str, dicts: Sequence[dict], digests: Sequence[str]
) -> Iterator[Issue]:
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
            yield Issue(IssueType.SHARED_IMAGE, sample.image, details)
        elif namesake := by_id.get(sample.image_id):
            details = f"image_id {sample.image_id!r}, as {namesake['file_name']} of {name}"
            yield Issue(IssueType.SHARED_NAME, sample.image, details)


def find_odd_palettes(samples: Sequence[Sample]) -> Iterator[Issue]:
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
                yield Issue(IssueType.PALETTE_MISMATCH, str(sample.label), details)
                break


def find_degenerate(samples: Sequence[Sample], classes: Sequence[str]) -> Iterator[Issue]:
    """Labels without any class, a class alone, and classes without a single pixel."""
    if not any(s.total for s in samples):
        return  # no label could be read; each has been reported
    occurs = np.any([s.counts > 0 for s in samples], axis=0)
    if not occurs.any():
        yield Issue(IssueType.NO_CLASS, "all labels")
        return
    if occurs.sum() == 1:
        alone = int(np.flatnonzero(occurs)[0])
        yield Issue(IssueType.SINGLE_CLASS, f"{alone} {classes[alone]}")
    for i, name in enumerate(classes):
        if not occurs[i]:
            yield Issue(IssueType.ABSENT_CLASS, f"{i} {name}")
