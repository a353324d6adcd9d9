#!/usr/bin/env python
"""Draw the architecture of CDGCNet as an SVG that reads well on light and on dark pages.

python tools/draw_architecture.py [--output projects/CDGCNet/assets/architecture.svg]
"""

import argparse
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LINE = "#8a8f98"  # gray that is visible on white and on black
TEXT = "#1f2328"  # on the light boxes
NETWORK, FEATURES, GRAPH, PREDICTION = "#cfe3f7", "#e3e6ea", "#e7defa", "#d5edd3"
CLASSES = ("#4e79a7", "#e8912d", "#59a14f")
CLASS_MAP = ("000011", "000111", "220111", "222111", "222011")


def box(axes: Any, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=0.8"
    patch = FancyBboxPatch(
        (x, y), width, height, boxstyle=style, facecolor=color, edgecolor=LINE, linewidth=0.8
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=TEXT)


def arrow(axes: Any, *points: tuple[float, float]) -> None:
    """A line through the points, with a head at the last one."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=LINE, linewidth=1.2, solid_capstyle="round")
    properties = {"arrowstyle": "-|>", "color": LINE, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=properties)


def note(axes: Any, x: float, y: float, text: str, **kwargs: Any) -> None:
    axes.text(x, y, text, color=LINE, va="center", **{"ha": "center", "fontsize": 7.5, **kwargs})


def class_map(axes: Any, x: float, y: float, cell: float, graph: bool) -> None:
    """A small coarse class map; with ``graph``, its pixels as nodes linked within each class."""
    from matplotlib.patches import Rectangle

    rows = len(CLASS_MAP)
    nodes = [
        (int(label), x + (j + 0.5) * cell, y + (rows - i - 0.5) * cell)
        for i, line in enumerate(CLASS_MAP)
        for j, label in enumerate(line)
    ]
    for label, cx, cy in nodes:
        corner = cx - cell / 2, cy - cell / 2
        if graph:
            axes.add_patch(Rectangle(corner, cell, cell, color="white", lw=0))
        shade = 0.3 if graph else 1.0
        axes.add_patch(Rectangle(corner, cell, cell, color=CLASSES[label], alpha=shade, lw=0))
    if not graph:
        return
    nodes = nodes[::2]  # every second one, so that the links can be told apart
    for k, (label, cx, cy) in enumerate(nodes):
        for other, ox, oy in nodes[k + 1 :]:
            if label == other:
                axes.plot((cx, ox), (cy, oy), color=CLASSES[label], linewidth=0.6, alpha=0.8)
    for label, cx, cy in nodes:
        axes.plot(cx, cy, "o", markersize=3.2, color=CLASSES[label])


def draw(path: Path) -> None:
    """Write the picture; the format follows the suffix."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "cdgcnet", "font.size": 8.5}):
        figure = Figure(figsize=(9.6, 3.9))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, 128), ylim=(0, 52))
        axes.axis("off")

        # the basic network and its coarse prediction
        box(axes, 1, 32, 10, 9, "image", FEATURES)
        arrow(axes, (11, 36.5), (15, 36.5))
        box(axes, 15, 32, 16, 9, "dilated ResNet\noutput stride 8", NETWORK)
        arrow(axes, (31, 36.5), (35, 36.5))
        box(axes, 35, 32, 12, 9, "ASPP,\nreduction", NETWORK)
        arrow(axes, (47, 36.5), (51, 36.5))
        box(axes, 51, 32, 11, 9, "features X", FEATURES)
        arrow(axes, (62, 36.5), (67, 36.5))
        box(axes, 67, 32, 13, 9, "1×1 coarse\nclassifier", NETWORK)
        arrow(axes, (80, 36.5), (85, 36.5))
        box(axes, 85, 32, 21, 9, "", PREDICTION)
        class_map(axes, 86.5, 33.1, 1.35, graph=False)
        axes.text(101 - 0.8, 36.5, "coarse\nprediction P", ha="center", va="center", color=TEXT)
        note(axes, 108, 36.5, "loss 0.6 · CE", ha="left")
        arrow(axes, (23, 41), (23, 44))
        box(axes, 17, 44, 12, 6, "auxiliary head", NETWORK)
        note(axes, 31, 47, "in training only, loss 0.4 · CE", ha="left")

        # the graph module
        box(axes, 51, 5, 36, 19, "", GRAPH)
        axes.text(69, 22, "CDGC: one graph per class", ha="center", va="center", color=TEXT)
        class_map(axes, 53, 6.7, 2.6, graph=True)
        steps = "nodes of each class\n↓\nattention among them\n↓\ngraph convolution"
        axes.text(77.8, 13.1, steps, ha="center", va="center", color=TEXT, fontsize=7.5)
        arrow(axes, (59, 32), (59, 24))
        note(axes, 60, 28, "node features", ha="left")
        arrow(axes, (95.5, 32), (95.5, 28), (81, 28), (81, 24))
        note(axes, 88.5, 26.4, "class map")

        # the refined prediction
        arrow(axes, (87, 14.5), (91, 14.5))
        note(axes, 88.6, 16.6, "X̂", fontsize=8.5)
        box(axes, 91, 10, 8.5, 9, "concat\nX, X̂", FEATURES)
        arrow(axes, (54, 32), (54, 28), (48, 28), (48, 2), (95.2, 2), (95.2, 10))
        note(axes, 46.8, 15, "X", ha="right", fontsize=8.5)
        arrow(axes, (99.5, 14.5), (102.5, 14.5))
        box(axes, 102.5, 10, 9.5, 9, "1×1\nclassifier", NETWORK)
        arrow(axes, (112, 14.5), (115, 14.5))
        box(axes, 115, 10, 12, 9, "refined\nprediction R", PREDICTION)
        note(axes, 121, 7.5, "loss 0.7 · OHEM")
        same_bytes = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
        figure.savefig(path, transparent=True, dpi=130, **same_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "projects" / "CDGCNet" / "assets" / "architecture.svg",
        help="SVG, PDF or PNG",
    )
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
