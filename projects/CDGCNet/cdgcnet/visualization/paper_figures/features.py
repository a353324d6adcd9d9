"""Fig. 6: a class's features before and after the graph."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import Metadata

from cdgcnet.visualization.paper_figures.boxes import group_boxes
from cdgcnet.visualization.paper_figures.canvas import (
    BOX,
    draw_frame,
    new_figure,
    save,
    show,
    tallest_aspect,
    write_note,
)
from cdgcnet.visualization.paper_figures.observe import Observation


def class_affinity(features: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Cosine of each node's feature with the mean feature of a class's nodes.

    Channels are standardised first: after a ReLU all features point into one octant and any two are
    similar, and a few strong channels would hide the others.

    Args:
        features: (C, h, w).
        members: (h, w) bool, at least one.

    Returns:
        (h, w) in [-1, 1].
    """
    spread, mean = torch.std_mean(features, dim=(1, 2), keepdim=True, correction=0)
    standard = (features - mean) / spread.clamp_min(1e-6)
    center = standard[:, members].mean(dim=1)
    return F.cosine_similarity(standard, center[:, None, None], dim=0)


def draw_features(
    path: Path,
    pairs: Sequence[tuple[Observation, int]],
    metadata: Metadata,
    ignore_label: int,
) -> None:
    """Fig. 6: a class's features before and after the graph, and where they should be.

    The paper does not say how it turns features into a picture; here it is
    :func:`class_affinity` to the class's nodes, of X and of X̂.

    Args:
        path: PNG, PDF or SVG to write.
        pairs: an observation and the class, per row; all with ground truth or all without.
        metadata: gives class names.
        ignore_label: pixels with it are gray in the ground truth.

    Raises:
        ValueError: for a network that refines nothing, or an image without a node of the class.
    """
    labeled = all(o.truth is not None for o, _ in pairs)
    titles = [
        "image",
        "before the graph, X",
        "after it, X̂",
        *(["ground truth"] if labeled else []),
    ]
    names = list(metadata.stuff_classes)
    figure, axes = new_figure(
        len(pairs), len(titles), tallest_aspect([o for o, _ in pairs]), legend=0.36
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    shown = None
    for (o, label), row in zip(pairs, axes, strict=True):
        if o.after is None:
            raise ValueError(
                "the network has no graph (MODEL.CDGC.ENABLED False): nothing is before or after it"
            )
        map_ = o.truth_map if labeled and o.truth_map is not None else o.coarse_map
        members = map_ == label
        if not members.any():
            raise ValueError(f"{o.name}: no node of class {names[label]}; choose another class")
        show(row[0], o.image)
        write_note(row[0], f"{names[label]}, {o.name}", len(titles))
        height, width = o.image.shape[:2]
        for axis, features in zip(row[1:3], (o.before, o.after), strict=True):
            affinity = F.interpolate(
                class_affinity(features, members)[None, None],
                size=(height, width),
                mode="bilinear",
                align_corners=o.align_corners,
            )[0, 0]
            shown = axis.imshow(affinity.numpy(), cmap="RdYlBu_r", vmin=-1, vmax=1)
        hard = np.zeros((height, width), bool)
        if labeled and o.truth is not None:
            valid = o.truth != ignore_label
            hard = ((o.coarse == label) ^ (o.truth == label)) & valid
            mask = np.full((*o.truth.shape, 3), 255, np.uint8)
            mask[o.truth == label] = (30, 30, 30)
            mask[~valid] = 190
            show(row[3], mask)
        for box in group_boxes(hard):
            for i, axis in enumerate(row):
                draw_frame(axis, box, "#d62728" if i == 3 else BOX)
    assert shown is not None
    inches = figure.get_size_inches()[1]
    bar = figure.add_axes((0.3, 0.2 / inches, 0.4, 0.07 / inches))
    figure.colorbar(shown, cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=6, length=2, pad=1)
    figure.text(
        0.295,
        0.205 / inches,
        "cosine with the class's mean feature",
        fontsize=6.5,
        ha="right",
    )
    if labeled:
        figure.text(0.705, 0.205 / inches, "frames: hard pixels of the class", fontsize=6.5)
    save(figure, path)
