"""Training curves as SVG pictures."""

import io
from collections.abc import Mapping
from typing import Any

from cdgcnet.evaluation.html_report.run_data import Curve
from cdgcnet.visualization.encoding import data_url

_GRAY = "#808080"  # readable on a light and on a dark page


def draw_curves(title: str, curves: Mapping[str, Curve]) -> str:
    """Curves over the iterations as the address of an SVG picture ("data:…").

    Text becomes outlines, so that the picture looks the same everywhere and holds no markup.

    Args:
        title: above the picture, and the label of its vertical axis.
        curves: name in the legend -> values.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    colors: dict[Any, Any] = {
        f"{part}.{key}": _GRAY for part in ("xtick", "ytick") for key in ("color", "labelcolor")
    }
    colors |= {"axes.edgecolor": _GRAY, "axes.labelcolor": _GRAY, "text.color": _GRAY}
    with rc_context({**colors, "svg.hashsalt": title, "axes.formatter.use_mathtext": False}):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axis = figure.add_subplot()
        for name, curve in curves.items():
            iterations, values = zip(*curve, strict=True)
            # A label that starts with "_" would have no entry in the legend.
            label = f" {name}" if name.startswith("_") else name
            marker = "o" if len(curve) < 20 else ""
            axis.plot(iterations, values, label=label, linewidth=1.4, marker=marker, markersize=3)
        axis.set_xlabel("iteration")
        axis.set_ylabel(title)
        axis.grid(color=_GRAY, alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for text in axis.legend(frameon=False, fontsize=8).get_texts():
            text.set_parse_math(False)  # names may contain "$"
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return data_url(stream.getvalue(), "image/svg+xml")
