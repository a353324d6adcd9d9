"""Where the pixels of a feature map lie in the image and its labels.

Shape shorthand: B images, h x w feature map, H x W image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdgc.validation import check_shape


def node_positions(
    length: int, nodes: int, align_corners: bool, device: torch.device | None = None
) -> Tensor:
    """The image row (or column) at the center of each row (or column) of the feature map.

    Args:
        length: size of the image along this axis.
        nodes: size of the feature map along this axis.
        align_corners: whether the logits are resized with aligned corners: node i then lies at
            i*(length-1)/(nodes-1), otherwise at (i+0.5)*length/nodes - 0.5.
        device: device of the result.

    Returns:
        (nodes,) int64 indices; a node halfway between two pixels takes the later one. A plain
        nearest resize would drift by up to 7 pixels from 769 to 97.
    """
    i = torch.arange(nodes, device=device)
    # In integers, because floats can fall just short of a pixel (148 -> 18, node 13: pixel 111).
    if align_corners:
        gaps = max(nodes - 1, 1)
        return (2 * i * (length - 1) + gaps) // (2 * gaps)
    return (2 * i + 1) * length // (2 * nodes)


def valid_nodes(
    image_sizes: Sequence[Sequence[int]],
    padded: Sequence[int],
    size: Sequence[int],
    align_corners: bool,
) -> Tensor:
    """Which pixels of the feature maps of a padded batch lie inside their image.

    Args:
        image_sizes: (H, W) of each image before padding at the right and bottom.
        padded: (H, W) of the batch tensor.
        size: (h, w) of the feature map.
        align_corners: whether the logits are resized with aligned corners.

    Returns:
        (B, h, w) bool.
    """
    rows = node_positions(padded[0], size[0], align_corners)
    columns = node_positions(padded[1], size[1], align_corners)
    return torch.stack([(rows < h)[:, None] & (columns < w)[None] for h, w in image_sizes])


def resize_targets(targets: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Read the target at the center of each node: (B, H, W) -> (B, h, w) for ``size`` = (h, w).

    Equals ``targets[:, ::8, ::8]`` for 8k+1 crops with align_corners.
    """
    check_shape("targets", targets, ("B", "H", "W"))
    rows = node_positions(targets.shape[-2], size[0], align_corners, targets.device)
    columns = node_positions(targets.shape[-1], size[1], align_corners, targets.device)
    return targets[:, rows[:, None], columns]
