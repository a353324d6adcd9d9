"""A confusion matrix as a heat map. Shape shorthand: M classes, ground truth in rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cdgcnet.utils.io import atomic_write

_MAX_NUMBERED = 30  # with more classes, a cell is too small for a number


def draw_confusion_matrix(
    path: Path,
    percent: np.ndarray,
    names: Sequence[str],
    title: str,
    column_label: str,
    color_map: str,
) -> None:
    """Draw a heat map, with numbers if the cells are large enough.

    Args:
        path: PNG to write.
        percent: (M, M), percent of the pixels of the class in the row.
        names: class names.
        title: above the picture.
        column_label: what the columns mean.
        color_map: name of a matplotlib color map.
    """
    count = len(names)
    numbered = count <= _MAX_NUMBERED
    side = max(4.5, min(26.0, (0.42 if numbered else 0.14) * count))
    figure = Figure(figsize=(side + 2.6, side + 1.8), layout="constrained")
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    axis = figure.subplots()
    top = float(percent.max()) or 1.0
    drawn = axis.imshow(percent, cmap=color_map, vmin=0, vmax=top)
    size = 8 if numbered else 5.5
    axis.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(range(count), names, fontsize=size, parse_math=False)
    axis.set_xlabel(column_label)
    axis.set_ylabel("ground truth")
    axis.set_title(title, fontsize=11)
    if numbered:
        for row, column in np.argwhere(percent >= 0.05):
            value = percent[row, column]
            axis.text(
                column,
                row,
                f"{value:.0f}" if value >= 9.95 else f"{value:.1f}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if value > 0.55 * top else "black",
            )
    bar = figure.colorbar(drawn, ax=axis, shrink=0.8, aspect=40)
    bar.set_label("percent of the true class")
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, dpi=130)
