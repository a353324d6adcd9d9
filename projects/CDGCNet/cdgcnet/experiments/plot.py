"""A table of rows as a picture, from the same lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cdgcnet.experiments.table import Line
from cdgcnet.utils.io import atomic_write

_SPAN = 2.0  # percent of mIoU, the least that a picture's axis shows
_GREY, _BLUE, _RED = "0.35", "#1f6fb4", "#b4431f"


def comparable_means(controls: Sequence[Line]) -> list[float]:
    """Means of the controls that have every seed that any of them has, as in the table."""
    seeds = {seed for control in controls for seed in control.values()}
    complete = [c for c in controls if c.values().keys() == seeds]
    return [c.mean.mean for c in complete if c.mean is not None]


def write_picture(path: Path, title: str, lines: Sequence[Line], controls: Sequence[Line]) -> None:
    """One line a row: ours with every seed and, in a panel of their own, the paper's values.

    Args:
        path: PNG or PDF to write.
        title: over the picture.
        lines: the rows, from the top.
        controls: the best of them is drawn across.
    """
    count, places = len(lines), range(len(lines))
    known = [(line.row.paper, y) for y, line in enumerate(lines) if line.row.paper is not None]
    figure = Figure(figsize=(9, 1.5 + 0.3 * count), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(1, 2 if known else 1, sharey=True, squeeze=False)[0]
    measured = axes[-1]
    measured.set_title("measured, mIoU in percent", fontsize=9)
    for axis in axes:
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.margins(x=0.15)
        axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(list(places), [line.row.label for line in lines], fontsize=8)
    axes[0].set_ylim(count - 0.5, -0.5)
    if known:
        axes[0].set_title("paper, on its own data", fontsize=9)
        axes[0].scatter(*zip(*known, strict=True), marker="D", s=22, color="0.35")
    of_controls = {c.hash for c in controls}
    shown: dict[str, Any] = {}
    for y, line in enumerate(lines):
        mean = line.mean
        if mean is None:
            continue
        values = list(line.values().values())
        control = line.hash in of_controls
        color, name = (_GREY, "control") if control else (_BLUE, "row")
        seeds = measured.scatter(values, [y] * len(values), s=26, color=color, marker="|", lw=1)
        error = 0.0 if mean.error is None else mean.error
        bar = measured.errorbar(mean.mean, y, xerr=error, fmt="o", ms=5, color=color, lw=1.2)
        shown |= {f"{name}: mean ± standard error": bar, "each seed": seeds}
    plain = [c for c in controls if not c.evaluation]
    levels = comparable_means(plain)
    if levels and shown and not any(line.evaluation for line in lines):
        every = len(levels) == len(plain)
        label = "best control" if every else f"best of {len(levels)} of {len(plain)} controls"
        shown[label] = measured.axvline(max(levels), color=_RED, lw=1, ls="--")
    if shown:
        low, high = measured.get_xlim()
        if high - low < _SPAN:  # differences of noise must not fill the page
            measured.set_xlim((low + high - _SPAN) / 2, (low + high + _SPAN) / 2)
        figure.legend(
            list(shown.values()),
            list(shown),
            loc="outside lower center",
            ncols=len(shown),
            fontsize=8,
            frameon=False,
        )
    else:
        measured.set_xticks([])
        measured.text(
            0.5, 0.5, "not measured", transform=measured.transAxes, ha="center", color="0.5"
        )
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path)
