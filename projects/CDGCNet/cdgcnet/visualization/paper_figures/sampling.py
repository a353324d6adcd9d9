"""Fig. 4: the easy and hard nodes of a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
from detectron2.data import Metadata
from matplotlib.lines import Line2D

from cdgcnet.visualization.grid import PAGE_WIDTH, PanelGrid, tallest_aspect
from cdgcnet.visualization.paper_figures.activations import (
    EASY,
    HARD_NEGATIVE,
    HARD_POSITIVE,
    Activations,
    sampled_nodes,
)
from cdgcnet.visualization.paper_figures.marks import draw_outline, gray, write_note

# Color-blind readers can tell these apart, and each kind has a marker of its own.
NODE_STYLE: dict[str, dict[str, Any]] = {
    EASY: {"color": "#3ddc5b", "marker": "o"},
    HARD_POSITIVE: {"color": "#ff2a2a", "marker": "s"},
    HARD_NEGATIVE: {"color": "#ffb000", "marker": "^"},
}


def draw_sampling(
    path: Path,
    pairs: Sequence[tuple[Activations, int]],
    metadata: Metadata,
    ignore_label: int,
    easy_ratio: float = 1.0,
) -> None:
    """Fig. 4: easy and hard nodes of one class on the image.

    Args:
        path: PNG, PDF or SVG to write.
        pairs: an image with ground truth and a class per row.
        metadata: provides class names and colors.
        ignore_label: nodes with it belong to no set.
        easy_ratio: fraction of the easy positives to show, sampled as in training.
    """
    aspect = tallest_aspect([o.image for o, _ in pairs])
    grid = PanelGrid(len(pairs), 2, aspect, footer=0.26)
    titles = ("image, true outline of the class", "its nodes by Eq. 4")
    names = list(metadata.stuff_classes)
    for i, (seen, label) in enumerate(pairs):
        assert seen.truth is not None
        left = grid.show(i, 0, seen.image, titles[0] if i == 0 else "")
        mask = seen.truth == label
        draw_outline(left, mask, (1.6, 0.8))
        write_note(left, f"{names[label]}, {seen.name}", 2)
        pale = cv2.addWeighted(seen.image, 0.25, gray(seen.image), 0.4, 55)  # marks stand out
        right = grid.show(i, 1, pale, titles[1] if i == 0 else "")
        draw_outline(right, mask, (0.0, 0.6))
        rows, columns = seen.node_positions()
        spacing = seen.image.shape[1] / len(columns)
        # A marker is 0.62 times as wide as a node, in points; scatter takes an area.
        points = 0.62 * spacing / seen.image.shape[1] * (PAGE_WIDTH / 2) * 72
        found = sampled_nodes(seen, label, len(names), ignore_label, easy_ratio)
        for kind, places in found.items():
            right.scatter(
                columns[places[:, 1]],
                rows[places[:, 0]],
                s=points**2 * 0.8,
                edgecolors="black",
                linewidths=0.08 * points,
                zorder=3,
                **NODE_STYLE[kind],
            )
        counts = ", ".join(f"{len(places)} {kind}" for kind, places in found.items())
        write_note(right, counts, 2)
    meaning = {EASY: "both agree", HARD_POSITIVE: "missed", HARD_NEGATIVE: "mistaken for the class"}
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            markersize=5,
            markeredgecolor="black",
            markeredgewidth=0.4,
            label=f"{kind}: {meaning[kind]}",
            marker=style["marker"],
            color=style["color"],
        )
        for kind, style in NODE_STYLE.items()
    ]
    grid.figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=7, frameon=False)
    grid.save(path)
