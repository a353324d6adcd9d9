"""Pictures of an evaluation: matrices as heat maps, and single images with what the graph changed.

Shape shorthand: M classes, (H, W) uint8 label maps; matrices have ground truth in rows.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import Metadata
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import (
    BROKEN,
    FIXED,
    class_colors,
    label_image,
    unit_color,
)

IGNORED = (225, 225, 225)  # black is a class of VOC
WRONG = (240, 228, 66)
# Above this many classes a cell is too small for a number.
_WITH_NUMBERS = 30


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path, dpi=130)


def write_heat_map(
    path: Path,
    percent: np.ndarray,
    names: Sequence[str],
    title: str,
    predicted: str,
    colors: str,
) -> None:
    """A heat map, with numbers where the cells are large enough.

    Args:
        path: PNG to write.
        percent: (M, M), of the pixels of the row's class.
        names: of the classes.
        title: above the picture.
        predicted: label of the columns.
        colors: name of a matplotlib color map.
    """
    count = len(names)
    numbers = count <= _WITH_NUMBERS
    side = max(4.5, min(26.0, (0.42 if numbers else 0.14) * count))
    figure = Figure(figsize=(side + 2.6, side + 1.8), layout="constrained")
    axis = figure.subplots()
    top = float(percent.max()) or 1.0
    shown = axis.imshow(percent, cmap=colors, vmin=0, vmax=top)
    size = 8 if numbers else 5.5
    axis.set_xticks(range(count), names, rotation=90, fontsize=size)
    axis.set_yticks(range(count), names, fontsize=size)
    axis.set_xlabel(predicted)
    axis.set_ylabel("ground truth")
    axis.set_title(title, fontsize=11)
    if numbers:
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
    bar = figure.colorbar(shown, ax=axis, shrink=0.8, aspect=40)
    bar.set_label("percent of the true class")
    _save(figure, path)


def change_picture(
    image: np.ndarray,
    truth: np.ndarray,
    coarse: np.ndarray | None,
    refined: np.ndarray,
    ignore_label: int,
) -> np.ndarray:
    """The image in gray with fixed pixels blue, broken ones orange, wrong before and after yellow.

    Args:
        image: (H, W, 3) uint8 RGB.
        truth: (H, W); ignored pixels stay gray.
        coarse: None if there is no graph: all that is wrong is yellow.
        refined: (H, W).
        ignore_label: of the ground truth.

    Returns:
        (H, W, 3) uint8.
    """
    gray = 110 + 0.55 * image.mean(axis=2, keepdims=True)
    picture = np.repeat(gray, 3, axis=2).clip(0, 255).astype(np.uint8)
    counted = truth != ignore_label
    wrong = counted & (refined != truth)
    if coarse is None:
        picture[wrong] = WRONG
        return picture
    before = counted & (coarse != truth)
    picture[before & wrong] = WRONG
    picture[before & ~wrong] = FIXED
    picture[wrong & ~before] = BROKEN
    return picture


def write_image(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    predictions: dict[str, np.ndarray],
    metadata: Metadata,
    ignore_label: int,
    title: str,
) -> None:
    """One image: ground truth, predictions, and what the graph changed.

    Args:
        path: PNG to write.
        image: (H, W, 3) uint8 RGB.
        truth: (H, W).
        predictions: "refined" and perhaps "coarse", "oracle": (H, W).
        metadata: class names and colors.
        ignore_label: of the ground truth.
        title: above the picture.
    """
    colors = class_colors(metadata)
    coarse, refined = predictions.get("coarse"), predictions["refined"]
    panels = {"image": image, "ground truth": truth} | predictions
    if coarse is not None:  # in the order of the network
        order = ("image", "ground truth", "oracle", "coarse", "refined")
        panels = {name: panels[name] for name in order if name in panels}
    panels["change" if coarse is not None else "errors"] = change_picture(
        image, truth, coarse, refined, ignore_label
    )
    columns = 3 if len(panels) > 4 else 2
    rows = -(-len(panels) // columns)
    height, width = truth.shape
    cell = 4.4
    tall = min(2.5, max(0.2, height / width))
    figure = Figure(
        figsize=(cell * columns, (cell * tall + 0.3) * rows + 1.2), layout="constrained"
    )
    seen: set[int] = set()
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat:
        axis.axis("off")
    for axis, (name, panel) in zip(grid.flat, panels.items(), strict=False):
        axis.set_title(name, fontsize=10)
        if panel.ndim == 2:
            seen |= set(np.unique(panel).tolist())
            ignored = panel == ignore_label
            panel = np.array(label_image(panel, colors).convert("RGB"))
            panel[ignored] = IGNORED
        axis.imshow(panel, interpolation="nearest")
    handles = [
        Patch(facecolor=unit_color(colors[i]), label=metadata.stuff_classes[i])
        for i in sorted(seen)
        if i < len(colors)
    ]
    if ignore_label in seen:
        handles.append(Patch(facecolor=unit_color(IGNORED), edgecolor="black", label="ignored"))
    marks = {"wrong": WRONG}
    if coarse is not None:
        marks = {"fixed": FIXED, "broken": BROKEN, "wrong before and after": WRONG}
    handles += [
        Patch(facecolor=unit_color(color), edgecolor="black", label=name)
        for name, color in marks.items()
    ]
    columns_of_legend = max(1, min(len(handles), int(cell * columns / 1.7)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns_of_legend, fontsize=7.5
    )
    figure.suptitle(title, fontsize=10)
    _save(figure, path)
