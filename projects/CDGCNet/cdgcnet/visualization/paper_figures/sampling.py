"""Fig. 4: the easy and hard nodes of a class."""

from collections.abc import Sequence
from pathlib import Path

import cv2
from detectron2.data import Metadata
from matplotlib.lines import Line2D

from cdgcnet.visualization.paper_figures.canvas import (
    WIDTH,
    draw_outline,
    gray,
    new_figure,
    save,
    show,
    tallest_aspect,
    write_note,
)
from cdgcnet.visualization.paper_figures.observe import (
    EASY,
    HARD_NEGATIVE,
    HARD_POSITIVE,
    Observation,
    sampled_nodes,
)

# Told apart also by eyes that do not tell red from green; each kind has a mark of its own too.
NODE_STYLE = {
    EASY: {"color": "#3ddc5b", "marker": "o"},
    HARD_POSITIVE: {"color": "#ff2a2a", "marker": "s"},
    HARD_NEGATIVE: {"color": "#ffb000", "marker": "^"},
}


def draw_sampling(
    path: Path,
    pairs: Sequence[tuple[Observation, int]],
    metadata: Metadata,
    ignore_label: int,
    easy_ratio: float = 1.0,
) -> None:
    """Fig. 4: easy and hard nodes of one class on the image.

    Args:
        path: PNG, PDF or SVG to write.
        pairs: an observation with ground truth, and the class, per row.
        metadata: gives class names and colors.
        ignore_label: nodes with it are in no set.
        easy_ratio: share of the easy positives shown, as training would sample it.
    """
    figure, axes = new_figure(len(pairs), 2, tallest_aspect([o for o, _ in pairs]), legend=0.26)
    axes[0, 0].set_title("image, true outline of the class", fontsize=8, pad=3)
    axes[0, 1].set_title("its nodes in training", fontsize=8, pad=3)
    names = list(metadata.stuff_classes)
    for (seen, label), (left, right) in zip(pairs, axes, strict=True):
        assert seen.truth is not None
        show(left, seen.image)
        mask = seen.truth == label
        draw_outline(left, mask, (1.6, 0.8))
        write_note(left, f"{names[label]}, {seen.name}", 2)
        # Paler, so that the marks stand out from a picture that has all colors.
        show(right, cv2.addWeighted(seen.image, 0.25, gray(seen.image), 0.4, 55))
        draw_outline(right, mask, (0.0, 0.6))
        rows, columns = seen.node_positions()
        spacing = seen.image.shape[1] / len(columns)
        # Marks of 0.62 of a node's width, in points; area for scatter.
        points = 0.62 * spacing / seen.image.shape[1] * (WIDTH / 2) * 72
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
    said = {EASY: "both agree", HARD_POSITIVE: "missed", HARD_NEGATIVE: "taken for the class"}
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            markersize=5,
            markeredgecolor="black",
            markeredgewidth=0.4,
            label=f"{kind}: {said[kind]}",
            marker=style["marker"],
            color=style["color"],
        )
        for kind, style in NODE_STYLE.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=7, frameon=False)
    save(figure, path)
