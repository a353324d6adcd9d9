"""From pixels to nodes and back: two gathers that are each other's transpose.

Shape shorthand: P = B*N pixels, K nodes, C channels. A pixel holds at most two nodes, so the sum
over a pixel's nodes and the gradients of both directions are gathers too: no atomic additions,
the same result in every run.
"""

from typing import Any

import torch
from torch import Tensor

from .nodes import NodeSet


def _sum_over_slots(rows: Tensor, slots: Tensor) -> Tensor:
    """Each pixel's nodes added up: rows (K, C), slots (P, 2) -> (P, C)."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # slot -1 reads the zero row
    return padded[slots[:, 0]] + padded[slots[:, 1]]


class _PixelsToNodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, pixel: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        return pixels[pixel]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sum_over_slots(grad, ctx.saved_tensors[0]), None, None


class _NodesToPixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pixel: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(pixel)
        return _sum_over_slots(rows, slots)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.saved_tensors[0]], None, None


def pixels_to_nodes(pixels: Tensor, nodes: NodeSet) -> Tensor:
    """The features of every node: (P, C) -> (K, C)."""
    return _PixelsToNodes.apply(pixels, nodes.pixel, nodes.slots)


def nodes_to_pixels(rows: Tensor, nodes: NodeSet) -> Tensor:
    """The sum over each pixel's nodes, zero where it has none: (K, C) -> (P, C)."""
    return _NodesToPixels.apply(rows, nodes.pixel, nodes.slots)
