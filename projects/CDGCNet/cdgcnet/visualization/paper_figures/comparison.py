"""Fig. 5: what the graph changed in the prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import Metadata

from cdgcnet.visualization.colors import BROKEN, FIXED, class_colors, color_map
from cdgcnet.visualization.grid import LegendEntry, PanelGrid, class_legend, tallest_aspect
from cdgcnet.visualization.paper_figures.activations import Activations
from cdgcnet.visualization.paper_figures.boxes import densest_boxes
from cdgcnet.visualization.paper_figures.marks import WHITE, draw_frame, gray, write_note

STILL_WRONG = (60, 60, 60)


def _difference(
    seen: Activations, labeled: bool, ignore_label: int
) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that changed (H, W) bool, and a picture of them (H, W, 3)."""
    changed = seen.coarse != seen.refined
    picture = gray(seen.image) // 2 + 112
    if not labeled or seen.truth is None:
        picture[changed] = FIXED
        return changed, picture
    changed &= seen.truth != ignore_label
    picture[changed] = STILL_WRONG
    picture[changed & (seen.refined == seen.truth)] = FIXED
    picture[changed & (seen.coarse == seen.truth)] = BROKEN
    return changed, picture


def draw_comparison(
    path: Path, seen: Sequence[Activations], metadata: Metadata, ignore_label: int
) -> None:
    """Fig. 5: image, ground truth, coarse and refined prediction, and their differences.

    The regions with most changes are framed. Without ground truth its column is omitted, and a
    difference is neither right nor wrong.

    Args:
        path: PNG, PDF or SVG to write.
        seen: one per row, either all with ground truth or all without.
        metadata: provides class names and colors.
        ignore_label: pixels with it are gray in the ground truth and never count as different.
    """
    labeled = all(o.truth is not None for o in seen)
    titles = ["image", *(["ground truth"] if labeled else []), "coarse", "refined", "difference"]
    kinds = {"changed": FIXED}
    if labeled:
        kinds = {"fixed": FIXED, "broken": BROKEN, "changed, still wrong": STILL_WRONG}
    maps = [[o.truth, o.coarse, o.refined] if labeled else [o.coarse, o.refined] for o in seen]
    occurring = {int(v) for row in maps for x in row if x is not None for v in np.unique(x)}
    legend = class_legend(sorted(occurring), metadata, ignore_label)
    legend += [LegendEntry(kind, color) for kind, color in kinds.items()]
    aspect = tallest_aspect([o.image for o in seen])
    grid = PanelGrid(len(seen), len(titles), aspect, legend=legend)
    colors = class_colors(metadata)
    for i, (o, row) in enumerate(zip(seen, maps, strict=True)):
        changed, difference = _difference(o, labeled, ignore_label)
        colored = [color_map(x, colors) for x in row if x is not None]
        for j, picture in enumerate([o.image, *colored, difference]):
            axis = grid.show(i, j, picture, titles[j] if i == 0 else "")
            if j == 0:
                write_note(axis, o.name, len(titles))
            for box in densest_boxes(changed):
                draw_frame(axis, box, "black" if titles[j] == "difference" else WHITE)
    grid.save(path)
