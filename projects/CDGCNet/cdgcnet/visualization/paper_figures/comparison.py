"""Fig. 5: what the graph changed in the prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import Metadata
from matplotlib.patches import Patch

from cdgcnet.visualization.colors import BROKEN, FIXED, class_colors, unit_color
from cdgcnet.visualization.paper_figures.boxes import densest_boxes
from cdgcnet.visualization.paper_figures.canvas import (
    BOX,
    colored,
    draw_frame,
    gray,
    new_figure,
    save,
    show,
    tallest_aspect,
    write_note,
)
from cdgcnet.visualization.paper_figures.observe import Observation

STILL_WRONG = (60, 60, 60)


def draw_comparison(
    path: Path, seen: Sequence[Observation], metadata: Metadata, ignore_label: int
) -> None:
    """Fig. 5: image, ground truth, coarse and refined prediction, and their differences.

    Where most pixels changed is framed. Without ground truth that column is left
    out, and a difference is neither right nor wrong.

    Args:
        path: PNG, PDF or SVG to write.
        seen: one per row, all with ground truth or all without.
        metadata: gives class names and colors.
        ignore_label: pixels with it are black in the ground truth and no difference.
    """
    labeled = all(o.truth is not None for o in seen)
    titles = ["image", *(["ground truth"] if labeled else []), "coarse", "refined", "difference"]
    classes = sorted(
        {
            int(v)
            for o in seen
            for labels in (o.truth if labeled else None, o.coarse, o.refined)
            if labels is not None
            for v in np.unique(labels)
        }
        - {ignore_label}
    )
    kinds = {"changed": FIXED}
    if labeled:
        kinds = {"fixed": FIXED, "broken": BROKEN, "changed, still wrong": STILL_WRONG}
    handles = [
        Patch(facecolor=unit_color(class_colors(metadata)[i]), label=name)
        for i, name in enumerate(metadata.stuff_classes)
        if i in classes
    ]
    handles += [Patch(facecolor=unit_color(color), label=kind) for kind, color in kinds.items()]
    across = min(len(handles), 9)
    legend = 0.16 * -(-len(handles) // across) + 0.1
    figure, axes = new_figure(len(seen), len(titles), tallest_aspect(seen), legend)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    for o, row in zip(seen, axes, strict=True):
        changed = o.coarse != o.refined
        painted = gray(o.image) // 2 + 112
        if o.truth is not None and labeled:
            changed &= o.truth != ignore_label
            fixed, broken = (changed & (p == o.truth) for p in (o.refined, o.coarse))
            painted[changed] = STILL_WRONG
            painted[fixed], painted[broken] = FIXED, BROKEN
        else:
            painted[changed] = FIXED
        pictures = [o.image]
        if labeled and o.truth is not None:
            pictures.append(colored(o.truth, metadata))
        pictures += [colored(o.coarse, metadata), colored(o.refined, metadata), painted]
        boxes = densest_boxes(changed)
        for i, (axis, picture) in enumerate(zip(row, pictures, strict=True)):
            show(axis, picture)
            if i == 0:
                write_note(axis, o.name, len(pictures))
            for box in boxes:
                draw_frame(axis, box, "black" if i == len(pictures) - 1 else BOX)
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=across,
        fontsize=6.5,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.0,
        handletextpad=0.4,
    )
    save(figure, path)
