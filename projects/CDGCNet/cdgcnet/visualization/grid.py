"""A grid of pictures with titles and one legend, drawn with matplotlib as PNG, PDF or SVG."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import Metadata
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import IGNORED, class_colors, unit_color

PAGE_WIDTH = 7.0  # inches, the text width of a paper
MAX_LEGEND = 24  # entries
_GAP, _TITLE, _LINE = 0.03, 0.2, 0.16  # inches
_FONT = 6.5  # points
_CHARACTER = 0.6 * _FONT / 72  # inches, the average width of a character
_PIXELS = 1500  # of a picture's longer side; a larger one would only be scaled down when drawn


class LegendEntry(NamedTuple):
    """A color and what it means; hatched entries stand for striped pixels."""

    label: str
    color: tuple[int, int, int]
    hatched: bool = False


def class_legend(
    labels: Collection[int], metadata: Metadata, ignore_label: int | None = None
) -> list[LegendEntry]:
    """Entries for the classes among some labels, in the given order, and for ignored pixels.

    Args:
        labels: classes that occur; other values are left out.
        metadata: provides class names and colors.
        ignore_label: has an entry of its own if it occurs.
    """
    names, colors = list(metadata.stuff_classes), class_colors(metadata)
    classes = [label for label in labels if label < len(names)]
    entries = [LegendEntry(names[label], colors[label]) for label in classes[:MAX_LEGEND]]
    if len(classes) > MAX_LEGEND:
        entries.append(LegendEntry(f"+{len(classes) - MAX_LEGEND} more", (255, 255, 255)))
    if ignore_label is not None and ignore_label in labels:
        entries.append(LegendEntry("ignored", IGNORED))
    return entries


class PanelGrid:
    """Rows and columns of pictures that share one aspect ratio."""

    def __init__(
        self,
        rows: int,
        columns: int,
        aspect: float,
        *,
        legend: Sequence[LegendEntry] = (),
        footer: float = 0.0,
        title: str = "",
        row_titles: bool = False,
        width: float = PAGE_WIDTH,
    ):
        """
        Args:
            rows, columns: number of panels.
            aspect: height / width of a panel.
            legend: entries below the panels.
            footer: inches to keep free below the panels, for a legend of another kind.
            title: above the grid.
            row_titles: whether every row has titles, not only the first.
            width: of the figure in inches.
        """
        longest = max((len(entry.label) for entry in legend), default=0)
        per_line = max(1, int(width / (longest * _CHARACTER + 0.3)))
        lines = -(-len(legend) // per_line)
        bottom = footer + (lines * _LINE + 0.1 if legend else _GAP)
        head = _TITLE + (0.25 if title else 0.0)
        between = _TITLE if row_titles else _GAP
        panel_width = (width - (columns + 1) * _GAP) / columns
        panel_height = panel_width * aspect
        height = head + rows * panel_height + (rows - 1) * between + bottom
        self.columns = columns
        self.width = width
        self.figure = Figure(figsize=(width, height), dpi=220)
        FigureCanvasAgg(self.figure)  # no global pyplot state, no window system
        self.axes = self.figure.subplots(
            rows,
            columns,
            squeeze=False,
            gridspec_kw={
                "left": _GAP / width,
                "right": 1 - _GAP / width,
                "top": 1 - head / height,
                "bottom": bottom / height,
                "wspace": _GAP / panel_width,
                "hspace": between / panel_height,
            },
        )
        for axis in self.axes.flat:
            axis.set_axis_off()
        if title:
            self.figure.suptitle(title, fontsize=9, y=1 - 0.05 / height, va="top", parse_math=False)
        if legend:
            self._draw_legend(legend, per_line)

    def _draw_legend(self, legend: Sequence[LegendEntry], per_line: int) -> None:
        handles = [
            Patch(
                facecolor=unit_color(entry.color),
                edgecolor="gray",
                linewidth=0.4,
                hatch="/////" if entry.hatched else None,
                label=entry.label,
            )
            for entry in legend
        ]
        drawn = self.figure.legend(
            handles=handles,
            loc="lower center",
            ncols=min(len(handles), per_line),
            fontsize=_FONT,
            frameon=False,
            handlelength=1.0,
            columnspacing=1.0,
            handletextpad=0.4,
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)  # names may contain "$"

    def show(self, row: int, column: int, picture: np.ndarray, title: str = "") -> Axes:
        """Draw a picture (H, W) or (H, W, 3) so that it fills its panel.

        Coordinates on the returned axes are pixels of the picture.
        """
        axis = self.axes[row, column]
        height, width = picture.shape[:2]
        scale = _PIXELS / max(height, width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        axis.imshow(
            picture,
            interpolation="nearest" if max(height, width) < 200 else "antialiased",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        if title:
            fits = int(self.width / self.columns / (0.6 * 8 / 72))
            short = title if len(title) <= fits else title[: fits - 1] + "…"
            axis.set_title(short, fontsize=8, pad=3, parse_math=False)
        return axis

    def save(self, path: Path) -> None:
        """Write the figure atomically; the suffix selects the format. Text remains text."""
        fonts = rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"})
        with fonts, atomic_write(path) as tmp_path:
            self.figure.savefig(tmp_path)


def tallest_aspect(pictures: Sequence[np.ndarray]) -> float:
    """Height / width of the tallest picture."""
    return max(picture.shape[0] / picture.shape[1] for picture in pictures)
