"""The group graph convolution of Eq. 1: one weight matrix per class.

Shape shorthand: K rows sorted by class, M classes, C input and D output channels.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc.kernels import KernelChoice, Lengths, in_autocast_dtype

# torch's grouped product takes fewer than 1024 groups.
_MOST_GROUPS = 1023


def class_linear(x: Tensor, weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """Multiply the rows of each class by that class's matrix.

    Args:
        x: (K, C), rows sorted by class.
        weight: (M, C, D). Classes without rows get a zero gradient rather than none, so that
            distributed training never waits for them.
        lengths: M row counts that sum to K; as :class:`Lengths` several calls can share them.

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
    x, weight = in_autocast_dtype(x, weight)  # autocast skips custom Functions
    if x.device != weight.device or x.dtype != weight.dtype:
        raise ValueError(
            f"x is {x.dtype} on {x.device}, weight {weight.dtype} on {weight.device}; both must be "
            "of one dtype on one device"
        )
    x = x.contiguous()
    lengths = Lengths.of(lengths)
    if lengths.filled < 2 or len(lengths) > _MOST_GROUPS:  # of one it is a product already
        return _loop(x, weight, lengths)
    return _kernel(x, weight)(x, weight, lengths)


def _loop(x: Tensor, weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """:func:`class_linear` with one product per class."""
    return _ClassLinear.apply(x, weight, lengths, _LOOP)


def _grouped(x: Tensor, weight: Tensor, lengths: Sequence[int]) -> Tensor:
    """:func:`class_linear` with one grouped product."""
    return _ClassLinear.apply(x, weight, lengths, _GROUPED)


def _loop_rows(x: Tensor, weight: Tensor, lengths: Lengths) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[2])
    for m, rows in _blocks(lengths):
        torch.mm(x[rows], weight[m], out=out[rows])
    return out


def _loop_weights(x: Tensor, grad: Tensor, lengths: Lengths) -> Tensor:
    shape = (len(lengths), x.shape[1], grad.shape[1])
    out = x.new_empty(shape) if lengths.filled == len(lengths) else x.new_zeros(shape)
    for m, rows in _blocks(lengths):
        torch.mm(x[rows].t(), grad[rows], out=out[m])
    return out


def _grouped_rows(x: Tensor, weight: Tensor, lengths: Lengths) -> Tensor:
    return F.grouped_mm(x, weight, offs=lengths.ends(x.device))


def _grouped_weights(x: Tensor, grad: Tensor, lengths: Lengths) -> Tensor:
    found = F.grouped_mm(x.t(), grad, offs=lengths.ends(x.device))
    if lengths.filled == len(lengths):
        return found
    # Kernels differ in what they leave in empty groups.
    return found.index_fill_(0, lengths.empty(x.device), 0)


def _blocks(lengths: Sequence[int]) -> list[tuple[int, slice]]:
    """The rows of each class that has any, as (class, rows)."""
    ends = itertools.accumulate(lengths)
    return [
        (m, slice(end - n, end)) for m, (n, end) in enumerate(zip(lengths, ends, strict=True)) if n
    ]


def _example(lengths: Sequence[int], channels: Sequence[int]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    width, out = channels
    x = torch.randn(sum(lengths), width, generator=g, dtype=torch.float64)
    weight = torch.randn(len(lengths), width, out, generator=g, dtype=torch.float64)
    return [x, weight * width**-0.5]


class _Products(NamedTuple):
    """Rows times the matrix of their class, and the gradient of these matrices."""

    rows: Callable[[Tensor, Tensor, Lengths], Tensor]
    weights: Callable[[Tensor, Tensor, Lengths], Tensor]


class _ClassLinear(torch.autograd.Function):
    """Multiplies the rows of class m by weight[m] and skips absent classes.

    A loop over ``weight[m]`` would make autograd allocate an (M, C, D) gradient for every class.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, lengths: Sequence[int], products: _Products
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.lengths = Lengths.of(lengths)
        ctx.products = products
        return products.rows(x, weight, ctx.lengths)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = ctx.products.rows(grad, weight.transpose(1, 2), ctx.lengths)
        if ctx.needs_input_grad[1]:
            grad_weight = ctx.products.weights(x, grad, ctx.lengths)
        return grad_x, grad_weight, None, None


_LOOP = _Products(_loop_rows, _loop_weights)
_GROUPED = _Products(_grouped_rows, _grouped_weights)
_kernel = KernelChoice("Grouped linear", _loop, {"grouped_mm": _grouped}, _example)
