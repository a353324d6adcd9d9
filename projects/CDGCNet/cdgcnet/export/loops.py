"""A condition and two loops that are part of an exported graph, and plain Python otherwise.

The loops become ``torch.export``'s scan and ONNX's Scan, the condition ``torch.cond`` and ONNX's
If. ``exporting`` says which.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan


def run_if(
    exporting: bool, condition: Tensor, then: Callable[..., Tensor], operands: tuple[Tensor, ...]
) -> Tensor:
    """``then(*operands)`` if the condition holds, otherwise the first operand."""
    if exporting:
        return torch.cond(condition, then, _skip, operands)
    return then(*operands) if bool(condition) else operands[0]


def _skip(total: Tensor, *_: Tensor) -> Tensor:
    return total.clone()


def fold(
    exporting: bool,
    add: Callable[[Tensor, tuple[Tensor, ...]], Tensor],
    total: Tensor,
    steps: tuple[Tensor, ...],
) -> Tensor:
    """``total = add(total, step)`` for each step along the first axis of the tensors."""
    if exporting:
        nothing = torch.zeros(1)
        return scan(lambda total, step: (add(total, step), nothing.clone()), total, steps)[0]
    for step in zip(*steps, strict=True):
        total = add(total, step)
    return total


def map_steps(
    exporting: bool,
    function: Callable[[tuple[Tensor, ...]], Tensor],
    steps: tuple[Tensor, ...],
) -> Tensor:
    """``function(step)`` for each step along the first axis of the tensors, stacked."""
    if exporting:
        nothing = torch.zeros(1)
        return scan(lambda state, step: (state.clone(), function(step)), nothing, steps)[1]
    return torch.stack([function(step) for step in zip(*steps, strict=True)])
