"""Pictures of predictions: label PNGs, overlays, comparison sheets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from detectron2.data import Metadata

IGNORE_COLOR = (0, 0, 0)
# What a refinement changed. Blue and vermilion, which color-blind readers tell apart.
FIXED, BROKEN = (0, 114, 178), (213, 94, 0)


def class_colors(metadata: "Metadata") -> list[tuple[int, int, int]]:
    """One RGB color per class: the dataset's own, or Detectron2's map where it has none."""
    from detectron2.utils.colormap import colormap

    count = len(metadata.stuff_classes)
    colors = metadata.get("stuff_colors") or np.resize(colormap(rgb=True), (count, 3))
    return [(int(r), int(g), int(b)) for r, g, b in colors]


def unit_color(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """A color of 0 to 255 as matplotlib takes it."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def palette_of(colors: Sequence[Sequence[int]]) -> list[int]:
    """A 256-color PNG palette; values that are no class are black."""
    palette = [channel for color in colors for channel in color]
    return palette + list(IGNORE_COLOR) * (256 - len(colors))


def label_image(labels: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """A palette image whose pixel values are the labels (H, W) themselves."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette_of(colors))
    return image


def color_labels(labels: np.ndarray, colors: Sequence[Sequence[int]]) -> np.ndarray:
    """Labels (H, W) in the colors of their classes, (H, W, 3); other pixels are striped.

    Black would be ambiguous for them, since it is the color of VOC's background.
    """
    rgb = np.array(label_image(labels, colors).convert("RGB"))
    height, width = labels.shape
    diagonals = np.add.outer(np.arange(height), np.arange(width))
    stripes = np.where(diagonals // max(2, min(height, width) // 32) % 2, 255, 90)
    ignored = labels >= len(colors)
    rgb[ignored] = stripes[ignored][:, None]
    return rgb


def overlay(image: np.ndarray, labels: np.ndarray, metadata: "Metadata") -> Image.Image:
    """Class colors and names over an RGB image (H, W, 3), by Detectron2's visualizer."""
    from detectron2.utils.visualizer import Visualizer

    drawn = Visualizer(image, metadata).draw_sem_seg(labels, alpha=0.5)
    return Image.fromarray(drawn.get_image())


def comparison_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    metadata: "Metadata",
    path: Path,
) -> None:
    """A picture grid: in each row an RGB image (H, W, 3), then label maps (H, W).

    Args:
        rows: one sequence per image; label maps hold class ids or the ignore label.
        titles: one per column.
        metadata: gives class names and colors; the legend lists the classes that occur.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    height, width = rows[0][0].shape[:2]
    cell = 3.2
    legend_height = 0.6
    figure = Figure(
        figsize=(cell * len(titles), cell * height / width * len(rows) + 0.3 + legend_height),
        layout="constrained",
        dpi=110,
    )
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    seen: set[int] = set()
    for row, images in enumerate(rows):
        for column, picture in enumerate(images):
            axis = axes[row, column]
            axis.axis("off")
            if row == 0:
                axis.set_title(titles[column], fontsize=10)
            if picture.ndim == 2:
                seen |= {int(v) for v in np.unique(picture)}
                picture = np.asarray(label_image(picture, metadata.stuff_colors).convert("RGB"))
            axis.imshow(picture, interpolation="nearest")
    handles = [
        Patch(
            facecolor=tuple(c / 255 for c in metadata.stuff_colors[i]),
            label=metadata.stuff_classes[i],
        )
        for i in sorted(seen)
        if i < len(metadata.stuff_classes)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(cell * len(titles) / 1.4))),
        fontsize=8,
    )
    figure.savefig(path)
