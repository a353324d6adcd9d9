"""The grouped part of the class-wise graph convolution (Eq. 1): one matrix per class.

Shape shorthand: K rows sorted by class, M classes, C input and D output channels.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _ClassLinear(torch.autograd.Function):
    """Row block m times weight[m], touching the blocks of present classes only.

    One Function rather than M autograd nodes: ``weight[m]`` in a loop makes autograd allocate
    an (M, C, D) gradient per class.
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


def _blocks(lengths: Sequence[int]) -> list[tuple[int, slice]]:
    """(class, its rows) of the present classes."""
    ends = itertools.accumulate(lengths)
    return [
        (m, slice(end - n, end)) for m, (n, end) in enumerate(zip(lengths, ends, strict=True)) if n
    ]


def class_linear(x: Tensor, weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """Multiply the rows of each class by that class's matrix.

    Args:
        x: (K, C), rows sorted by class.
        weight: (M, C, D). Classes without rows get a zero gradient, not a missing one, so that
            distributed training never waits for them.
        lengths: M row counts that sum to K.

    Returns:
        (K, D); rows of class m are ``x_m @ weight[m]``. Has no bias: a bias would let absent
        classes leak ReLU(b_m) into every pixel of the dense form.

    Raises:
        ValueError: if the shapes, the row counts, the devices or, outside autocast, the dtypes do
            not fit.
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
    if torch.is_autocast_enabled(x.device.type):  # custom Functions are not autocast
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    if x.device != weight.device or x.dtype != weight.dtype:
        raise ValueError(
            f"x is {x.dtype} on {x.device}, weight {weight.dtype} on {weight.device}; both must be "
            "of one dtype on one device"
        )
    return _ClassLinear.apply(x.contiguous(), weight, _blocks(lengths))
