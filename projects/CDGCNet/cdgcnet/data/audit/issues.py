"""What an audit found: problems, class frequencies, and the report as text.

Shape shorthand: M classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tabulate import tabulate

_SHOWN = 10


@dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        title: what is wrong.
        advice: the way out.
        is_error: training or its scores would be wrong; otherwise it is a warning.
    """

    title: str
    advice: str
    is_error: bool = True


IMAGE = Kind("unreadable image", "fetch or export these files again")
LABEL = Kind("unreadable label", "fetch or export these files again")
NO_LABEL = Kind("image without label", "label it, or take it out of the list")
COLOR = Kind(
    "color image as label",
    "a label holds one class id per pixel: export ids (grayscale or palette PNG), not colors",
)
SIZE = Kind(
    "label and image differ in size",
    "export the label at the image's size; an image may be turned by its EXIF orientation",
)
VALUE = Kind(
    "label value out of range",
    "map the values to 0 … classes - 1, or to the ignore label; Cityscapes' label ids must become "
    "train ids",
)
GREY = Kind(
    "palette PNG saved as gray",
    "the values are the brightness of palette colors: fetch the labels again, and read them "
    "without converting them (Pillow's convert('L') and OpenCV do this)",
)
SHARED = Kind(
    "image in two sets", "take it out of one: scores on images that were trained on mean nothing"
)
SHARED_ID = Kind(
    "same name in two sets",
    "look whether it is the same picture saved twice; otherwise this is harmless",
    is_error=False,
)
TWICE = Kind("image twice in the set", "take out all but one", is_error=False)
ID_TWICE = Kind(
    "same name twice in the set", "results go by the name: make the names differ", is_error=False
)
EMPTY = Kind("all pixels ignored", "nothing can be learned from it: take it out", is_error=False)
PALETTE = Kind(
    "palettes differ",
    "the same id has several colors: were all files made with the same list of classes?",
    is_error=False,
)
ABSENT = Kind(
    "class never occurs",
    "its IoU will be undefined or 0: is the class list right, and the split complete?",
    is_error=False,
)
COUNT = Kind("unofficial number of images", "is the set complete?", is_error=False)
KINDS = (
    IMAGE, LABEL, NO_LABEL, COLOR, SIZE, GREY, VALUE, SHARED,
    EMPTY, ABSENT, TWICE, ID_TWICE, SHARED_ID, PALETTE, COUNT,
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One finding: its kind, the file, class or set it is about, and the details."""

    kind: Kind
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
        problems: of this pair alone.
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
    problems: Sequence[Problem] = ()

    @property
    def sound(self) -> bool:
        """Image and label can be shown together."""
        return not any(p.kind.is_error for p in self.problems)

    @property
    def ignored_share(self) -> float:
        return self.ignored / self.total if self.total else 0.0


@dataclass(frozen=True)
class Report:
    """All findings about one set.

    Attributes:
        name: of the set.
        classes, colors: M names and RGB colors.
        samples: in the set's order.
        problems: of all samples and of the set as a whole.
        notes: what was compared, and what could not be.
    """

    name: str
    classes: Sequence[str]
    colors: Sequence[tuple[int, int, int]]
    samples: Sequence[Sample]
    problems: Sequence[Problem]
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

    def number(self, *, errors: bool) -> int:
        return sum(p.kind.is_error == errors for p in self.problems)

    def grouped(self, *, errors: bool) -> Iterator[tuple[Kind, list[Problem]]]:
        """The kinds that occur, with their problems."""
        for kind in KINDS:
            problems = [p for p in self.problems if p.kind == kind]
            if problems and kind.is_error == errors:
                yield kind, problems

    def totals(self) -> str:
        """Size of the set in a line."""
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
        """The spread of the ignored share over the images in a line; "" without labels."""
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
        for kind, problems in report.grouped(errors=errors):
            lines.append(f"{word}: {kind.title} ({len(problems)}): {kind.advice}")
            lines += [f"  {problem}" for problem in problems[:_SHOWN]]
            if len(problems) > _SHOWN:
                lines.append(f"  … and {len(problems) - _SHOWN} more")
            lines.append("")
    if report.labeled:
        rows = zip(
            range(len(report.classes)), report.classes, report.percent, report.images, strict=True
        )
        headers = ["id", "class", "% of labeled pixels", "images"]
        lines += [tabulate(list(rows), headers=headers, floatfmt=".3f"), ""]
    lines.append(f"{report.name}: {report.totals()}")
    lines += [line for line in [report.ignored_per_image()] if line]
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"result: {report.verdict()}")
    return "\n".join(lines)
