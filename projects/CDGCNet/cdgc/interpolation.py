"""Bilinear resizing along one axis, as ``F.interpolate`` does it, in a composable form."""

import torch
from torch import Tensor


def resize_taps(
    in_size: int, out_size: int, align_corners: bool, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The two inputs that ``F.interpolate(mode="bilinear", size=...)`` mixes for each output.

    Args:
        in_size, out_size: lengths of the axis before and after.
        align_corners: as in ``F.interpolate``.
        like: a tensor with the dtype and device of the result.

    Returns:
        The index of the lower input, that of the upper one, and the weight of the upper one,
        (out_size,) each.
    """
    # Half precision has no numbers for most positions beyond 256 or 2048.
    dtype = torch.promote_types(like.dtype, torch.float32)
    i = torch.arange(out_size, device=like.device, dtype=dtype)
    if align_corners:
        y = i * ((in_size - 1) / (out_size - 1) if out_size > 1 else 0.0)
    else:
        y = ((i + 0.5) * (in_size / out_size) - 0.5).clamp(min=0)
    low = y.floor().long().clamp(max=in_size - 1)
    return low, (low + 1).clamp(max=in_size - 1), (y - low).to(like.dtype)


def resize_matrix(in_size: int, out_size: int, align_corners: bool, like: Tensor) -> Tensor:
    """:func:`resize_taps` as a matrix.

    Returns:
        (out_size, in_size), with at most two nonzero entries in each row, which sum to 1.
    """
    low, high, weight = resize_taps(in_size, out_size, align_corners, like)
    matrix = like.new_zeros(out_size, in_size)
    matrix.scatter_(1, low[:, None], 1 - weight[:, None])
    return matrix.scatter_add_(1, high[:, None], weight[:, None])
