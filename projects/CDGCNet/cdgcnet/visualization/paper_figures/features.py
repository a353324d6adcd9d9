"""Fig. 6: a class's features before and after the graph."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import Metadata

from cdgcnet.visualization.grid import PanelGrid, tallest_aspect
from cdgcnet.visualization.paper_figures.activations import Activations
from cdgcnet.visualization.paper_figures.boxes import group_boxes
from cdgcnet.visualization.paper_figures.marks import WHITE, draw_frame, write_note


def class_affinity(features: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of each node's feature with the mean feature of a class's nodes.

    Channels are standardized first. After a ReLU all features lie in the same orthant, so any two
    would be similar, and a few strong channels would hide the others.

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


def _ground_truth(truth: np.ndarray, label: int, ignore_label: int) -> np.ndarray:
    """A class black, other classes white, ignored pixels gray: (H, W) -> (H, W, 3)."""
    picture = np.full((*truth.shape, 3), 255, np.uint8)
    picture[truth == label] = (30, 30, 30)
    picture[truth == ignore_label] = 190
    return picture


def _draw_color_bar(grid: PanelGrid, labeled: bool) -> None:
    figure = grid.figure
    inches = figure.get_size_inches()[1]
    bar = figure.add_axes((0.3, 0.2 / inches, 0.4, 0.07 / inches))
    figure.colorbar(grid.axes[0, 1].images[0], cax=bar, orientation="horizontal")
    bar.tick_params(labelsize=6, length=2, pad=1)
    y = 0.205 / inches
    figure.text(0.295, y, "cosine with the class's mean feature", fontsize=6.5, ha="right")
    if labeled:
        figure.text(0.705, y, "frames: hard pixels of the class", fontsize=6.5)


def draw_features(
    path: Path,
    pairs: Sequence[tuple[Activations, int]],
    metadata: Metadata,
    ignore_label: int,
) -> None:
    """Fig. 6: a class's features before and after the graph, and where the class is.

    The paper does not say how it turns features into a picture; here it is the
    :func:`class_affinity` to the nodes of the class, of X and of X̂.

    Args:
        path: PNG, PDF or SVG to write.
        pairs: an image and a class per row, either all with ground truth or all without.
        metadata: provides class names.
        ignore_label: pixels with it are gray in the ground truth.

    Raises:
        ValueError: for a network without refinement, or an image without a node of the class.
    """
    labeled = all(o.truth is not None for o, _ in pairs)
    titles = ["image", "before the graph, X", "after it, X̂"]
    titles += ["ground truth"] if labeled else []
    names = list(metadata.stuff_classes)
    aspect = tallest_aspect([o.image for o, _ in pairs])
    grid = PanelGrid(len(pairs), len(titles), aspect, footer=0.36)
    for i, (o, label) in enumerate(pairs):
        if o.after is None:
            raise ValueError(
                "the network has no graph (MODEL.CDGC.ENABLED False), so there are no features "
                "after it"
            )
        classes = o.truth_map if labeled and o.truth_map is not None else o.coarse_map
        members = classes == label
        if not members.any():
            raise ValueError(f"{o.name}: no node of class {names[label]}; choose another class")
        axis = grid.show(i, 0, o.image, titles[0] if i == 0 else "")
        write_note(axis, f"{names[label]}, {o.name}", len(titles))
        for j, features in enumerate((o.before, o.after), start=1):
            affinity = F.interpolate(
                class_affinity(features, members)[None, None],
                size=o.image.shape[:2],
                mode="bilinear",
                align_corners=o.align_corners,
            )[0, 0]
            axis = grid.show(i, j, affinity.numpy(), titles[j] if i == 0 else "")
            axis.images[0].set(cmap="RdYlBu_r", clim=(-1, 1))
        if labeled and o.truth is not None:
            grid.show(
                i, 3, _ground_truth(o.truth, label, ignore_label), titles[3] if i == 0 else ""
            )
            hard = ((o.coarse == label) ^ (o.truth == label)) & (o.truth != ignore_label)
            for box in group_boxes(hard):
                for j, axis in enumerate(grid.axes[i]):
                    draw_frame(axis, box, "#d62728" if j == 3 else WHITE)
    _draw_color_bar(grid, labeled)
    grid.save(path)
