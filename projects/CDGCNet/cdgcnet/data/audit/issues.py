"""What an audit finds: issues, class frequencies, and the report as text.

Shape shorthand: M classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from tabulate import tabulate

from cdgcnet.data.audit.class_weights import class_weights

_SHOWN = 10


class IssueType(Enum):
    """What can be wrong with a dataset; the report lists issues in this order.

    Attributes:
        title: what is wrong.
        advice: what to do about it.
        is_error: training or its scores would be wrong; otherwise it is a warning.
    """

    UNREADABLE_IMAGE = "unreadable image", "download or export these files again"
    UNREADABLE_LABEL = (
        "unreadable label",
        "download or export these files again, with values from 0 to 255",
    )
    MISSING_LABEL = "image without a label", "label it, or take it out of the list"
    COLOR_LABEL = (
        "label with color or alpha channels",
        "a label holds one class id for each pixel: export ids (grayscale or palette PNG), or "
        "import color masks with `cdgcnet prepare import rgb`",
    )
    SIZE_MISMATCH = (
        "label and image differ in size",
        "export the label at the size of the image; the image may be turned by EXIF data",
    )
    GRAY_PALETTE = (
        "palette PNG saved as gray",
        "the values are the brightness of palette colors: download the labels again, and read them "
        "without conversion (Pillow's convert('L') and OpenCV convert them)",
    )
    UNKNOWN_VALUE = (
        "label value out of range",
        "map the values to 0 … classes - 1 or to the ignore label; label ids of Cityscapes must "
        "become train ids",
    )
    SHARED_IMAGE = (
        "image in two datasets",
        "take it out of one: scores on images that were trained on mean nothing",
    )
    NO_CLASS = (
        "no pixel has a class",
        "every label is ignored: are the values of the classes (IDS, IGNORE) right?",
    )
    SINGLE_CLASS = (
        "only one class occurs",
        "every prediction of it is right: give the rest of the images a class, such as background; "
        "if 255 is a class and not the ignored rest, say so (own data: IDS and IGNORE: [])",
    )
    ALL_IGNORED = "all pixels ignored", "nothing can be learned from it: take it out", False
    ABSENT_CLASS = (
        "class never occurs",
        "it cannot be learned, and its IoU is undefined: is the class list right, and the split "
        "complete?",
        False,
    )
    DUPLICATE_IMAGE = "image twice in the dataset", "take out all but one", False
    DUPLICATE_NAME = (
        "name twice in the dataset", "results are listed by name: make the names differ", False
    )  # fmt: skip
    SHARED_NAME = (
        "same name in two datasets",
        "check whether it is the same picture saved twice; otherwise this is harmless",
        False,
    )
    PALETTE_MISMATCH = (
        "palettes differ",
        "one id has several colors: were all files made with the same list of classes?",
        False,
    )
    UNOFFICIAL_COUNT = "unofficial number of images", "is the dataset complete?", False

    def __init__(self, title: str, advice: str, is_error: bool = True) -> None:
        self.title = title
        self.advice = advice
        self.is_error = is_error


@dataclass(frozen=True)
class Issue:
    """Something that is wrong: its type, the file, class or dataset concerned, and details."""

    type: IssueType
    subject: str
    details: str = ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.details}" if self.details else self.subject


@dataclass(frozen=True)
class Sample:
    """One image with its label.

    Attributes:
        image, label: files; label is None in a split without labels.
        lut: maps the label file's values to classes, as in the dataset dict.
        image_id: of the dataset dict.
        counts: (M,) pixels per class; zeros without a readable label.
        ignored: pixels with the ignore label.
        total: pixels of the label, 0 without a readable one.
        digest: of the image file's bytes; "" if it cannot be read.
        palette: of a palette PNG, the color of each value that occurs and is a class.
        issues: of this pair alone.
    """

    image: str
    label: str | None
    lut: bytes | None
    image_id: str
    counts: np.ndarray
    ignored: int = 0
    total: int = 0
    digest: str = ""
    palette: dict[int, tuple[int, ...]] = field(default_factory=dict)
    issues: Sequence[Issue] = ()

    @property
    def sound(self) -> bool:
        """Image and label can be shown together."""
        return not any(issue.type.is_error for issue in self.issues)

    @property
    def ignored_share(self) -> float:
        return self.ignored / self.total if self.total else 0.0


@dataclass(frozen=True)
class Report:
    """Everything that is known about one dataset.

    Attributes:
        name: of the dataset.
        classes, colors: M names and RGB colors.
        samples: in the order of the dataset.
        issues: of all samples and of the dataset as a whole.
        notes: what was compared, and what could not be compared.
    """

    name: str
    classes: Sequence[str]
    colors: Sequence[tuple[int, int, int]]
    samples: Sequence[Sample]
    issues: Sequence[Issue]
    notes: Sequence[str] = ()

    @property
    def labeled(self) -> bool:
        return any(s.label is not None for s in self.samples)

    @property
    def pixels(self) -> np.ndarray:
        """(M,) pixels per class."""
        return np.stack([s.counts for s in self.samples]).sum(axis=0, dtype=np.int64)

    @property
    def images(self) -> np.ndarray:
        """(M,) number of images in which a class occurs."""
        return np.stack([s.counts > 0 for s in self.samples]).sum(axis=0, dtype=np.int64)

    @property
    def percent(self) -> np.ndarray:
        """(M,) share of each class in the pixels that have a class, in percent."""
        pixels = self.pixels
        return 100 * pixels / max(int(pixels.sum()), 1)

    def suggested_weights(self) -> list[str]:
        """Lines for a config that weigh rare classes more, and where they come from."""
        labeled = [s for s in self.samples if s.total]
        totals = np.array([s.counts.sum(dtype=np.int64) for s in labeled])
        having = np.stack([s.counts > 0 for s in labeled]) if labeled else np.zeros((0, 1), bool)
        weights = class_weights(self.pixels, self.images, totals @ having, len(labeled))
        if not weights:
            return []
        lines = ["Weights for rare classes, optional, below MODEL.CDGC.LOSS (their mean is 1):"]
        return lines + [
            f"  CLASS_WEIGHTS: [{', '.join(f'{w:.4g}' for w in values)}]  # {name}"
            for name, values in weights.items()
        ]

    def number(self, *, errors: bool) -> int:
        return sum(issue.type.is_error == errors for issue in self.issues)

    def grouped(self, *, errors: bool) -> Iterator[tuple[IssueType, list[Issue]]]:
        """The types that occur, with their issues."""
        for issue_type in IssueType:
            issues = [issue for issue in self.issues if issue.type is issue_type]
            if issues and issue_type.is_error == errors:
                yield issue_type, issues

    def totals(self) -> str:
        """The size of the dataset in one line."""
        text = f"{len(self.samples)} images"
        if not self.labeled:
            return f"{text} without labels, {len(self.classes)} classes"
        total = sum(s.total for s in self.samples)
        ignored = sum(s.ignored for s in self.samples)
        return (
            f"{text}, {len(self.classes)} classes, {total / 1e6:.1f} million pixels, "
            f"{100 * ignored / max(total, 1):.1f} % of them ignored"
        )

    def ignored_per_image(self) -> str:
        """How much of the images is ignored, in one line; "" without labels."""
        labeled = [s for s in self.samples if s.total]
        if not labeled:
            return ""
        median = float(np.median([s.ignored_share for s in labeled]))
        worst = max(labeled, key=lambda s: s.ignored_share)
        return (
            f"ignored pixels per image: median {100 * median:.1f} %, most "
            f"{100 * worst.ignored_share:.1f} % in {worst.label}"
        )

    def verdict(self) -> str:
        errors, warnings = self.number(errors=True), self.number(errors=False)
        return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def format_report(report: Report) -> str:
    """The report as text: errors, warnings, class table, totals."""
    lines = []
    for errors, word in ((True, "error"), (False, "warning")):
        for issue_type, issues in report.grouped(errors=errors):
            lines.append(f"{word}: {issue_type.title} ({len(issues)}): {issue_type.advice}")
            lines += [f"  {issue}" for issue in issues[:_SHOWN]]
            if len(issues) > _SHOWN:
                lines.append(f"  … and {len(issues) - _SHOWN} more")
            lines.append("")
    if report.labeled:
        rows = zip(
            range(len(report.classes)), report.classes, report.percent, report.images, strict=True
        )
        headers = ["id", "class", "% of labeled pixels", "images"]
        lines += [tabulate(list(rows), headers=headers, floatfmt=".3f"), ""]
        lines += [*report.suggested_weights(), ""]
    lines.append(f"{report.name}: {report.totals()}")
    lines += [line for line in [report.ignored_per_image()] if line]
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"result: {report.verdict()}")
    return "\n".join(lines)
