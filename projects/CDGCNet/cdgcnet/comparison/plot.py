"""The table of a comparison as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cdgcnet.comparison.report import Line
from cdgcnet.comparison.rows import CONTROL
from cdgcnet.evaluation.estimates import estimate
from cdgcnet.utils.io import atomic_write

# Kind of head -> color and name; all others are peers.
_STYLES = {"plain": ("0.35", "plain"), CONTROL: ("0.35", "control"), "graph": ("#b4431f", "graph")}
_PEERS = ("#1f6fb4", "peers")
_LEVELS = {"plain": ("-", "plain head (solid)"), CONTROL: ("--", "control (dashed)")}


def write_picture(path: Path, title: str, lines: Sequence[Line]) -> None:
    """Write :func:`draw` as a PNG or PDF."""
    figure = draw(title, lines)
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path)


def draw(title: str, lines: Sequence[Line]) -> Figure:
    """Every row's seeds as rings, their mean as a dot with its standard error.

    Args:
        title: over the picture.
        lines: from the top.
    """
    figure = Figure(figsize=(8, 1.3 + 0.3 * len(lines)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    axis = figure.subplots()
    axis.set_title(title, fontsize=10, parse_math=False)
    names: dict[str, dict[str, None]] = {}  # color -> what has it, each once and in order
    for y, line in enumerate(lines):
        color, name = _STYLES.get(line.kind, _PEERS)
        names.setdefault(color, {})[name] = None
        scores = list(line.scores.values())
        found = estimate(scores)
        assert found is not None
        if len(scores) > 1:
            axis.scatter(scores, [y] * len(scores), s=18, facecolors="none", edgecolors=color)
        axis.errorbar(found.mean, y, xerr=found.error, fmt="o", color=color, ms=5, capsize=3)
    levels: dict[str, None] = {}
    for line in lines:
        if line.kind in _LEVELS and line.context == "none":
            style, name = _LEVELS[line.kind]
            levels[name] = None
            axis.axvline(line.mean, color="0.6", lw=1, ls=style, zorder=0)
    contexts = [line.context for line in lines]
    for y in range(1, len(lines)):
        if contexts[y] != contexts[y - 1]:
            axis.axhline(y - 0.5, color="0.8", lw=0.8)
    axis.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=8)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    explained = f"; vertical lines: {', '.join(levels)}" if levels else ""
    axis.set_xlabel(f"mIoU in percent{explained}")
    axis.xaxis.label.set_fontsize(8)
    axis.tick_params(labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.92")
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    handles = [
        Line2D([], [], marker="o", ls="", color=color, label=" and ".join(found))
        for color, found in names.items()
    ]
    axis.legend(handles=handles, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
