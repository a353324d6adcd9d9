"""A page of pictures with matplotlib, as pixels (PNG) or vectors (PDF, SVG)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import class_colors, label_image
from cdgcnet.visualization.paper_figures.observe import Observation

FORMATS = (".png", ".pdf", ".svg")
WIDTH = 7.0  # inches, a page's text
BOX = "#ffffff"  # of a frame on a picture


def new_figure(rows: int, columns: int, aspect: float, legend: float) -> tuple[Figure, np.ndarray]:
    """An empty grid of pictures of one aspect (height / width); ``legend`` inches below it."""
    gap, title = 0.03, 0.2
    across = (WIDTH - (columns + 1) * gap) / columns
    down = across * aspect
    height = title + rows * down + (rows - 1) * gap + legend
    figure = Figure(figsize=(WIDTH, height), dpi=220)
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    axes = figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            "left": gap / WIDTH,
            "right": 1 - gap / WIDTH,
            "top": 1 - title / height,
            "bottom": legend / height,
            "wspace": gap / across,
            "hspace": gap / down,
        },
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write PNG, PDF or SVG by the suffix, whole or not at all; letters stay letters."""
    with rc_context({"pdf.fonttype": 42, "svg.fonttype": "none"}), atomic_write(path) as tmp_path:
        figure.savefig(tmp_path)


def show(axis: Axes, picture: np.ndarray) -> None:
    """A picture (H, W) or (H, W, 3) that fills its place, whatever is drawn over its edge."""
    axis.imshow(picture, interpolation="nearest" if picture.ndim == 2 else "antialiased")
    axis.set_xlim(-0.5, picture.shape[1] - 0.5)
    axis.set_ylim(picture.shape[0] - 0.5, -0.5)


def draw_outline(axis: Axes, mask: np.ndarray, widths: tuple[float, float]) -> None:
    """The outline of a mask (H, W), white on black of two widths in points."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for outline in found:
        x, y = np.vstack([outline[:, 0], outline[:1, 0]]).T
        for color, width in zip(("black", "white"), widths, strict=True):
            axis.plot(x, y, color=color, lw=width)


def draw_frame(axis: Axes, box: tuple[int, int, int, int], color: str) -> None:
    """A rectangle (left, top, width, height) around pixels; white gets a black edge."""
    left, top, width, height = box
    for edge, line in (("black", 1.6), (color, 0.8)) if color == BOX else ((color, 1.0),):
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                width,
                height,
                fill=False,
                edgecolor=edge,
                linewidth=line,
                clip_on=False,  # the whole line, at the picture's edge too
            )
        )


def colored(labels: np.ndarray, metadata: Metadata) -> np.ndarray:
    """Labels (H, W) in their classes' colors, (H, W, 3) uint8."""
    return np.asarray(label_image(labels, class_colors(metadata)).convert("RGB"))


def write_note(axis: Axes, text: str, columns: int) -> None:
    """A small line of text in the lower left corner of one of ``columns`` pictures."""
    fits = int(WIDTH / columns * 72 / (6 * 0.58)) - 2  # a letter of 6 points is 0.58 as wide
    axis.annotate(
        text if len(text) <= fits else text[: fits - 1] + "…",
        (0, 0),
        xycoords="axes fraction",
        xytext=(2.5, 3),
        textcoords="offset points",
        fontsize=6,
        color="white",
        parse_math=False,  # names may hold "$"
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
    )


def gray(image: np.ndarray) -> np.ndarray:
    """Gray values as an RGB image."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def tallest_aspect(seen: Sequence[Observation]) -> float:
    """Height / width of the tallest image."""
    return max(o.image.shape[0] / o.image.shape[1] for o in seen)
