"""Predictions and internal features of a trained network for one image.

Shape shorthand: image H x W, feature map h x w at stride 8, C channels, M classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdgc import select_nodes
from cdgcnet.visualization.paper_figures.comparison import ComparedImage

EASY, HARD_POSITIVE, HARD_NEGATIVE = "easy positive", "hard positive", "hard negative"


@dataclass(frozen=True)
class Activations:
    """One image with everything that the figures show of it.

    Attributes:
        name: stem of the image file.
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) uint8 classes or the ignore label; None if there is no ground truth.
        coarse, refined: (H, W) uint8; equal if the network does not refine.
        coarse_map: (h, w) int64, class of each node by the coarse prediction.
        truth_map: (h, w) int64, class or ignore label at each node's own pixel; or None.
        before, after: (C, h, w) float32, X and X̂ of the paper; ``after`` is None if the network
            does not refine.
        align_corners: how nodes are placed on the image.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    coarse: np.ndarray
    refined: np.ndarray
    coarse_map: Tensor
    truth_map: Tensor | None
    before: Tensor
    after: Tensor | None
    align_corners: bool

    @property
    def compared(self) -> ComparedImage:
        return ComparedImage(self.name, self.image, self.truth, self.coarse, self.refined)

    def node_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates of the centers of the nodes: rows (h,) and columns (w,)."""
        return tuple(  # type: ignore[return-value]
            np.linspace(0, length - 1, count)
            if self.align_corners
            else (np.arange(count) + 0.5) * length / count - 0.5
            for length, count in zip(self.image.shape[:2], self.coarse_map.shape, strict=True)
        )


def sampled_nodes(
    seen: Activations, label: int, num_classes: int, ignore_label: int, easy_ratio: float
) -> dict[str, np.ndarray]:
    """The nodes that Eq. 4 selects for the graph of a class, as training with dynamic nodes does.

    Args:
        seen: an image with ground truth.
        label: the class.
        num_classes: M.
        ignore_label: nodes with it are omitted.
        easy_ratio: fraction of the easy positives, sampled with a fixed seed.

    Returns:
        "easy positive", "hard positive", "hard negative" -> (n, 2) int, row and column.
    """
    assert seen.truth_map is not None
    nodes = select_nodes(
        seen.coarse_map[None],
        seen.truth_map[None],
        num_classes=num_classes,
        nodes="dynamic",
        easy_ratio=easy_ratio,
        ignore_label=ignore_label,
        generator=torch.Generator().manual_seed(0),
    )
    ends = nodes.counts.sum(dim=1).cumsum(dim=0)
    begin = int(ends[label - 1]) if label else 0
    pixel = nodes.pixel[begin : int(ends[label])]
    width = seen.coarse_map.shape[1]
    places = torch.stack([pixel // width, pixel % width], dim=1)
    coarse = seen.coarse_map.flatten()[pixel] == label
    true = seen.truth_map.flatten()[pixel] == label
    parts = {EASY: coarse & true, HARD_POSITIVE: ~coarse & true, HARD_NEGATIVE: coarse & ~true}
    return {name: places[part].numpy() for name, part in parts.items()}


def hardest_class(seen: Activations, num_classes: int, ignore_label: int) -> int:
    """The class with most hard nodes for its size, preferably one with at least eight easy nodes.

    Raises:
        ValueError: for an image without ground truth.
    """
    if seen.truth_map is None:
        raise ValueError(f"{seen.name}: it takes ground truth to tell which nodes are hard")
    kept = seen.truth_map != ignore_label
    coarse, true = seen.coarse_map[kept], seen.truth_map[kept]

    def score(label: int) -> tuple[bool, bool, float]:
        c, g = coarse == label, true == label
        easy, hard = int((c & g).sum()), int((c ^ g).sum())
        # Adding 20 keeps out classes of only a handful of nodes, however wrong they are.
        return bool(g.any()), easy >= 8, hard / (easy + 20)

    return max(range(num_classes), key=score)
