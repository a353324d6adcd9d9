"""The group graph convolution of Eq. 1: one weight matrix per class.

Shape shorthand: K rows sorted by class, M classes, C input and D output channels.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def class_linear(x: Tensor, weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """Multiply the rows of each class by that class's matrix.

    Args:
        x: (K, C), rows sorted by class.
        weight: (M, C, D). Classes without rows get a zero gradient rather than none, so that
            distributed training never waits for them.
        lengths: M row counts that sum to K.

    Returns:
        (K, D); the rows of class m are ``x_m @ weight[m]``. There is no bias, because in the dense
        form it would leak ReLU(b_m) from absent classes into every pixel.

    Raises:
        ValueError: if shapes, row counts, devices or, outside autocast, dtypes do not fit.
    """
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"expected x (K, C) and weight (M, C, D), got {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )
    if len(lengths) != weight.shape[0] or sum(lengths) != x.shape[0]:
        raise ValueError(
            f"lengths must be {weight.shape[0]} row counts that sum to {x.shape[0]}, got "
            f"{len(lengths)} that sum to {sum(lengths)}"
        )
    if torch.is_autocast_enabled(x.device.type):  # autocast skips custom Functions
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if x.device != weight.device or x.dtype != weight.dtype:
        raise ValueError(
            f"x is {x.dtype} on {x.device}, weight {weight.dtype} on {weight.device}; both must be "
            "of one dtype on one device"
        )
    return _ClassLinear.apply(x.contiguous(), weight, _blocks(lengths))


def _blocks(lengths: Sequence[int]) -> list[tuple[int, slice]]:
    """The rows of each class that has any, as (class, rows)."""
    ends = itertools.accumulate(lengths)
    return [
        (m, slice(end - n, end)) for m, (n, end) in enumerate(zip(lengths, ends, strict=True)) if n
    ]


class _ClassLinear(torch.autograd.Function):
    """Multiplies the rows of class m by weight[m] and skips absent classes.

    A loop over ``weight[m]`` would make autograd allocate an (M, C, D) gradient for every class.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, blocks: list[tuple[int, slice]]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.blocks = blocks
        out = x.new_empty(x.shape[0], weight.shape[2])
        for m, rows in blocks:
            torch.mm(x[rows], weight[m], out=out[rows])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for m, rows in ctx.blocks:
            if grad_x is not None:
                torch.mm(grad[rows], weight[m].t(), out=grad_x[rows])
            if grad_weight is not None:
                torch.mm(x[rows].t(), grad[rows], out=grad_weight[m])
        return grad_x, grad_weight, None
