"""Bilinear resizing of one axis as a matrix: what ``F.interpolate`` does, ready to be composed."""

import torch
from torch import Tensor


def resize_matrix(in_size: int, out_size: int, align_corners: bool, like: Tensor) -> Tensor:
    """The weights of ``F.interpolate(mode="bilinear", size=...)`` along one axis.

    Args:
        in_size, out_size: lengths of the axis.
        align_corners: where the samples lie.
        like: gives dtype and device.

    Returns:
        (out_size, in_size), at most two entries a row, rows sum to 1.
    """
    i = torch.arange(out_size, device=like.device, dtype=like.dtype)
    if align_corners:
        y = i * ((in_size - 1) / (out_size - 1) if out_size > 1 else 0.0)
    else:
        y = ((i + 0.5) * (in_size / out_size) - 0.5).clamp(min=0)
    low = y.floor().long().clamp(max=in_size - 1)
    high = (low + 1).clamp(max=in_size - 1)
    weight = (y - low)[:, None]
    matrix = like.new_zeros(out_size, in_size)
    matrix.scatter_(1, low[:, None], 1 - weight)
    return matrix.scatter_add_(1, high[:, None], weight)
