"""Outlines, frames and notes on the panels of a figure."""

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cdgcnet.visualization.grid import PAGE_WIDTH

WHITE = "#ffffff"


def draw_outline(axis: Axes, mask: np.ndarray, widths: tuple[float, float]) -> None:
    """Draw the outline of a mask (H, W), white on black, with two line widths in points."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for outline in found:
        x, y = np.vstack([outline[:, 0], outline[:1, 0]]).T
        for color, width in zip(("black", "white"), widths, strict=True):
            axis.plot(x, y, color=color, lw=width)


def draw_frame(axis: Axes, box: tuple[int, int, int, int], color: str) -> None:
    """Draw a rectangle (left, top, width, height) around pixels; white gets a black edge."""
    left, top, width, height = box
    for edge, line in (("black", 1.6), (color, 0.8)) if color == WHITE else ((color, 1.0),):
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                width,
                height,
                fill=False,
                edgecolor=edge,
                linewidth=line,
                clip_on=False,  # show the whole line at the border of the picture too
            )
        )


def write_note(axis: Axes, text: str, columns: int) -> None:
    """Write a small line of text into the lower left corner of one of ``columns`` panels."""
    fits = int(PAGE_WIDTH / columns * 72 / (6 * 0.58)) - 2  # a 6-point character is 0.58 as wide
    axis.annotate(
        text if len(text) <= fits else text[: fits - 1] + "…",
        (0, 0),
        xycoords="axes fraction",
        xytext=(2.5, 3),
        textcoords="offset points",
        fontsize=6,
        color="white",
        parse_math=False,  # names may contain "$"
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
    )


def gray(image: np.ndarray) -> np.ndarray:
    """An RGB image in gray, as an RGB image."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
