"""What the refinement changed in one image, next to its predictions.

Shape shorthand: label maps (H, W) uint8, images (H, W, 3) uint8 RGB.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.data import Metadata

from cdgcnet.visualization.colors import BROKEN, FIXED, class_colors, color_map
from cdgcnet.visualization.grid import LegendEntry, PanelGrid, class_legend

WRONG = (240, 228, 66)
# By the values of change_labels: fixed, broken, and wrong before and after.
CHANGE_COLORS = (FIXED, BROKEN, WRONG)
UNCHANGED = 255
_ORDER = ("oracle", "coarse", "refined")


def change_labels(
    truth: np.ndarray | None,
    coarse: np.ndarray | None,
    refined: np.ndarray,
    ignore_label: int,
) -> np.ndarray:
    """What the refinement did to every pixel.

    Args:
        truth: (H, W). None if there is no ground truth; then all changed pixels count as fixed.
        coarse: (H, W). None if there is no refinement; then no pixel is fixed or broken.
        refined: (H, W).
        ignore_label: value of ignored pixels in the ground truth; they count as right.

    Returns:
        (H, W) uint8: 0 where it fixed a pixel, 1 where it broke one, 2 where the prediction is
        wrong and was wrong before, and UNCHANGED elsewhere.
    """
    changes = np.full(refined.shape, UNCHANGED, np.uint8)
    if truth is None:
        if coarse is not None:
            changes[coarse != refined] = 0
        return changes
    counted = truth != ignore_label
    wrong = counted & (refined != truth)
    before = wrong if coarse is None else counted & (coarse != truth)
    changes[before & ~wrong] = 0
    changes[wrong & ~before] = 1
    changes[wrong & before] = 2
    return changes


def change_map(
    image: np.ndarray,
    truth: np.ndarray | None,
    coarse: np.ndarray | None,
    refined: np.ndarray,
    ignore_label: int,
) -> np.ndarray:
    """The image in gray, with fixed pixels blue, broken ones orange, those always wrong yellow.

    Args:
        image: (H, W, 3).
        truth: (H, W); ignored pixels stay gray. None if there is no ground truth; then all changed
            pixels are blue.
        coarse: None if there is no refinement; then all wrong pixels are yellow.
        refined: (H, W).
        ignore_label: value of ignored pixels in the ground truth.

    Returns:
        (H, W, 3) uint8.
    """
    gray = 110 + 0.55 * image.mean(axis=2, keepdims=True)
    picture = np.repeat(gray, 3, axis=2).clip(0, 255).astype(np.uint8)
    changes = change_labels(truth, coarse, refined, ignore_label)
    for label, color in enumerate(CHANGE_COLORS):
        picture[changes == label] = color
    return picture


def draw_predictions(
    path: Path,
    image: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    metadata: Metadata,
    ignore_label: int,
    title: str,
) -> None:
    """Draw one image, its ground truth and predictions, and what the refinement changed.

    Args:
        path: PNG to write.
        image: (H, W, 3).
        truth: (H, W).
        predictions: "refined" and possibly "coarse" and "oracle", (H, W) each.
        metadata: provides class names and colors.
        ignore_label: value of ignored pixels in the ground truth.
        title: above the picture.
    """
    colors = class_colors(metadata)
    coarse, refined = predictions.get("coarse"), predictions["refined"]
    maps = {"ground truth": truth} | {k: predictions[k] for k in _ORDER if k in predictions}
    panels = {"image": image} | {name: color_map(x, colors) for name, x in maps.items()}
    changes = {"wrong": WRONG}
    if coarse is not None:
        changes = {"fixed": FIXED, "broken": BROKEN, "still wrong": WRONG}
    panels["change" if coarse is not None else "errors"] = change_map(
        image, truth, coarse, refined, ignore_label
    )
    occurring = sorted({int(label) for x in maps.values() for label in np.unique(x)})
    legend = class_legend(occurring, metadata, ignore_label)
    legend += [LegendEntry(name, color) for name, color in changes.items()]
    columns = 3 if len(panels) > 4 else 2
    height, width = truth.shape
    grid = PanelGrid(
        -(-len(panels) // columns),
        columns,
        min(2.5, max(0.2, height / width)),
        legend=legend,
        title=title,
        row_titles=True,
    )
    for i, (name, panel) in enumerate(panels.items()):
        grid.show(*divmod(i, columns), panel, name)
    grid.save(path)
