"""Pictures of predictions: label PNGs, overlays, comparison sheets."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

if TYPE_CHECKING:  # loading matplotlib takes a second
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

Color = tuple[int, int, int]

IGNORE_COLOR = (0, 0, 0)
STRIPE_COLOR = (170, 170, 170)  # of the hatching of ignored pixels
_STRIPES = 24  # along the longer side
LEGEND_CLASSES = 40  # more would push the pictures off the page


def class_colors(metadata: Metadata) -> list[Color]:
    """One RGB colour per class: the data set's own, or Detectron2's map where it has none."""
    count = len(metadata.stuff_classes)
    colors = metadata.get("stuff_colors") or np.resize(colormap(rgb=True), (count, 3))
    return [(int(r), int(g), int(b)) for r, g, b in colors]


def palette_of(colors: Sequence[Sequence[int]]) -> list[int]:
    """A 256-colour PNG palette; values that are no class are black."""
    palette = [channel for color in colors for channel in color]
    return palette + list(IGNORE_COLOR) * (256 - len(colors))


def label_image(labels: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """A palette image whose pixel values are the labels (H, W) themselves."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette_of(colors))
    return image


def overlay(image: np.ndarray, labels: np.ndarray, metadata: Metadata) -> Image.Image:
    """Class colours and names over an RGB image (H, W, 3), by Detectron2's visualizer."""
    drawn = Visualizer(image, metadata).draw_sem_seg(labels, alpha=0.5)
    return Image.fromarray(drawn.get_image())


def hatched(height: int, width: int) -> np.ndarray:
    """Diagonal grey stripes on black (H, W, 3), the look of ignored pixels in any size."""
    period = max(6, max(height, width) // _STRIPES)
    stripes = np.add.outer(np.arange(height), np.arange(width)) % period < period // 3
    return np.where(stripes[:, :, None], np.uint8(STRIPE_COLOR), np.uint8(IGNORE_COLOR))


def color_labels(labels: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Class colours of labels (H, W) as (H, W, 3) uint8; what is no class is hatched."""
    table = np.zeros((max(256, len(colors)), 3), np.uint8)
    table[: len(colors)] = colors
    is_class = labels < len(colors)
    return np.where(is_class[:, :, None], table[labels], hatched(*labels.shape))


def blend(image: np.ndarray, labels: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """The mean of an RGB image (H, W, 3) and its label colours, as (H, W, 3) uint8."""
    return ((image.astype(np.uint16) + color_labels(labels, colors)) // 2).astype(np.uint8)


def _plain(text: str) -> str:
    """A label that matplotlib shows as it is: it reads $ as mathematics and hides "_x"."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _class_patches(ids: Collection[int], metadata: Metadata) -> list["Patch"]:
    """Legend entries of classes."""
    from matplotlib.patches import Patch

    colors = class_colors(metadata)
    return [
        Patch(
            facecolor=tuple(c / 255 for c in colors[i]), label=_plain(metadata.stuff_classes[i])
        )
        for i in ids
    ]


def comparison_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    metadata: Metadata,
    path: Path,
) -> None:
    """A picture grid: in each row an RGB image (H, W, 3), then label maps (H, W).

    Args:
        rows: one sequence per image; label maps hold class ids or the ignore label.
        titles: one per column.
        metadata: gives class names and colours; the legend lists the classes that occur.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
    handles = _class_patches([i for i in sorted(seen) if i < len(metadata.stuff_classes)], metadata)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(cell * len(titles) / 1.4))),
        fontsize=8,
    )
    figure.savefig(path)


def _grid_legend(labels: Sequence[np.ndarray], metadata: Metadata) -> list["Patch"]:
    """Entries of the most frequent classes, "+N more", and "ignored" where a pixel is."""
    from matplotlib.patches import Patch

    count = len(metadata.stuff_classes)
    pixels = sum(np.bincount(one.ravel(), minlength=256) for one in labels)
    seen = np.flatnonzero(pixels[:count])
    frequent = seen[np.argsort(-pixels[seen], kind="stable")][:LEGEND_CLASSES]
    entries = _class_patches([int(i) for i in sorted(frequent)], metadata)
    if len(seen) > len(frequent):
        entries.append(Patch(visible=False, label=f"+{len(seen) - len(frequent)} more"))
    if pixels[count:].any():
        black, grey = (tuple(c / 255 for c in color) for color in (IGNORE_COLOR, STRIPE_COLOR))
        entries.append(Patch(facecolor=black, edgecolor=grey, hatch="////", label="ignored"))
    return entries


def sample_grid(
    samples: Sequence[tuple[str, np.ndarray, np.ndarray]],
    metadata: Metadata,
    path: Path,
    columns: int = 2,
) -> None:
    """A picture grid of samples: image, label colours and both blended, side by side.

    Args:
        samples: (caption, RGB image (H, W, 3), labels (H, W)); what is no class is hatched.
        metadata: gives class names and colours for the legend of the classes that occur.
        path: PNG to write.
        columns: samples in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = class_colors(metadata)
    columns = min(columns, len(samples))
    rows = -(-len(samples) // columns)
    # Inches. A sample is three pictures of equal width over its caption.
    width, gap, line = 2.3, 0.06, 0.3
    height = max(width * image.shape[0] / image.shape[1] for _, image, _ in samples)
    block_width, block_height = 3 * (width + gap) + 3 * gap, height + line
    legend = _grid_legend([labels for _, _, labels in samples], metadata)
    entries_per_row = max(1, int(columns * block_width / 1.7))
    legend_height = 0.22 * -(-len(legend) // entries_per_row) + 0.25
    figure_width = columns * block_width + 2 * gap
    figure_height = rows * block_height + line + legend_height
    figure = Figure(figsize=(figure_width, figure_height), dpi=110)
    FigureCanvasAgg(figure)  # no global pyplot state, no window system

    def place(picture: np.ndarray, left: float, top: float) -> None:
        tall = width * picture.shape[0] / picture.shape[1]
        axes = figure.add_axes(
            (
                left / figure_width,
                1 - (top + tall) / figure_height,
                width / figure_width,
                tall / figure_height,
            )
        )
        axes.axis("off")
        axes.imshow(picture, aspect="auto")

    def write(text: str, center: float, top: float) -> None:
        figure.text(
            center / figure_width, 1 - top / figure_height, _plain(text), ha="center", fontsize=8
        )

    for number, (caption, image, labels) in enumerate(samples):
        row, column = divmod(number, columns)
        left, top = 2 * gap + column * block_width, line + row * block_height
        pictures = {
            "image": image,
            "labels": color_labels(labels, colors),
            "overlay": blend(image, labels, colors),
        }
        for position, (title, picture) in enumerate(pictures.items()):
            x = left + position * (width + gap)
            place(picture, x, top)
            if row == 0:
                write(title, x + width / 2, 0.22)
        tall = width * image.shape[0] / image.shape[1]
        write(caption, left + 1.5 * width + gap, top + tall + 0.15)
    figure.legend(handles=legend, loc="lower center", ncols=entries_per_row, fontsize=8)
    figure.savefig(path)
