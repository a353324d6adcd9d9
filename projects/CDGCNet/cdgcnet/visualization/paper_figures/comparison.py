"""Fig. 5: what the graph changed in the prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import Metadata

from cdgcnet.visualization.change_map import WRONG, change_map
from cdgcnet.visualization.colors import BROKEN, FIXED, class_colors, color_map
from cdgcnet.visualization.grid import LegendEntry, PanelGrid, class_legend, tallest_aspect
from cdgcnet.visualization.paper_figures.boxes import Box, densest_boxes
from cdgcnet.visualization.paper_figures.marks import WHITE, draw_frame, write_note


class ComparedImage(NamedTuple):
    """An image and its label maps before and after the graph.

    Attributes:
        name: written onto the image.
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) uint8 classes or the ignore label; None if there is no ground truth.
        coarse, refined: (H, W) uint8.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    coarse: np.ndarray
    refined: np.ndarray

    def changed(self, ignore_label: int) -> np.ndarray:
        """(H, W) bool: where the predictions differ and the ground truth is not ignored."""
        different = self.coarse != self.refined
        return different if self.truth is None else different & (self.truth != ignore_label)

    def crop(self, box: Box) -> "ComparedImage":
        left, top, width, height = box
        part = slice(top, top + height), slice(left, left + width)
        truth = None if self.truth is None else self.truth[part]
        return ComparedImage(
            self.name, self.image[part], truth, self.coarse[part], self.refined[part]
        )


def most_changed_crops(
    compared: Sequence[ComparedImage], count: int, ignore_label: int
) -> list[ComparedImage]:
    """Squares of a third of the shorter side in which the predictions differ most.

    All changes count, for the better or the worse.

    Args:
        compared: images of which to take crops, at most one of each.
        count: number of crops at most.
        ignore_label: pixels with it do not count as changed.

    Returns:
        The crops, most changed pixels first.
    """
    crops = []
    for image in compared:
        side = max(min(image.coarse.shape) // 3, 1)
        boxes = densest_boxes(image.changed(ignore_label), 1, side)
        crops += [image.crop(box) for box in boxes]
    crops.sort(key=lambda crop: int(crop.changed(ignore_label).sum()), reverse=True)
    return crops[:count]


def _note_of_changes(image: ComparedImage, ignore_label: int) -> str:
    changed = image.changed(ignore_label)
    if image.truth is None:
        return f"{changed.sum()} pixels changed"
    fixed = changed & (image.refined == image.truth)
    broken = changed & (image.coarse == image.truth)
    return f"{fixed.sum()} fixed, {broken.sum()} broken"


def draw_comparison(
    path: Path,
    compared: Sequence[ComparedImage],
    metadata: Metadata,
    ignore_label: int,
    crops: int = 0,
) -> int:
    """Fig. 5: image, ground truth, coarse and refined prediction, and what changed.

    Either whole images, in which the regions with most changes are framed, or enlarged crops.
    Without ground truth its column is omitted, and a change is neither right nor wrong.

    Args:
        path: PNG, PDF or SVG to write.
        compared: either all with ground truth or all without.
        metadata: provides class names and colors.
        ignore_label: pixels with it are gray in the ground truth and never count as changed.
        crops: number of :func:`most_changed_crops` to draw; 0 for whole images, one per row.

    Returns:
        The number of rows.

    Raises:
        ValueError: if crops are wanted of predictions that are all the same.
    """
    rows = list(compared)
    if crops:
        rows = most_changed_crops(compared, crops, ignore_label)
        if not rows:
            raise ValueError("coarse and refined prediction are the same in all of these images")
    labeled = all(row.truth is not None for row in rows)
    titles = ["image", *(["ground truth"] if labeled else []), "coarse", "refined", "change"]
    kinds = {"changed": FIXED}
    if labeled:
        kinds = {"fixed": FIXED, "broken": BROKEN, "still wrong": WRONG}
    maps = [
        [row.coarse, row.refined] if row.truth is None else [row.truth, row.coarse, row.refined]
        for row in rows
    ]
    occurring = {int(label) for row in maps for x in row for label in np.unique(x)}
    legend = class_legend(sorted(occurring), metadata, ignore_label)
    legend += [LegendEntry(kind, color) for kind, color in kinds.items()]
    aspect = tallest_aspect([row.image for row in rows])
    grid = PanelGrid(len(rows), len(titles), aspect, legend=legend)
    colors = class_colors(metadata)
    for i, (row, labels) in enumerate(zip(rows, maps, strict=True)):
        change = change_map(row.image, row.truth, row.coarse, row.refined, ignore_label)
        panels = [row.image, *(color_map(x, colors) for x in labels), change]
        axes = [
            grid.show(i, j, panel, titles[j] if i == 0 else "") for j, panel in enumerate(panels)
        ]
        write_note(axes[0], row.name, len(titles))
        if crops:
            write_note(axes[-1], _note_of_changes(row, ignore_label), len(titles))
            continue
        for box in densest_boxes(row.changed(ignore_label)):
            for axis in axes:
                draw_frame(axis, box, "black" if axis is axes[-1] else WHITE)
    grid.save(path)
    return len(rows)
