"""From pixels to nodes and back: two gathers that are each other's transpose.

Shape shorthand: P = B*N pixels, K nodes, C channels. A pixel holds at most two nodes, so the sum
over a pixel's nodes and the gradients of both directions are gathers too: no atomic additions,
the same result in every run.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .nodes import NodeSet


def _sum_over_slots(rows: Tensor, slots: Tensor) -> Tensor:
    """Each pixel's nodes added up: rows (K, C), slots (P, 1 or 2) -> (P, C)."""
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # slot -1 reads the zero row
    out = padded[slots[:, 0]]
    return out if slots.shape[1] == 1 else out.add_(padded[slots[:, 1]])


def _slots(nodes: NodeSet) -> Tensor:
    """Without the second column where no pixel has a second node."""
    return nodes.slots[:, :1] if nodes.single else nodes.slots


def coarse_nodes(nodes: NodeSet) -> Tensor:
    """Which of the K nodes stand in the graph of their pixel's coarse class, (K,) bool."""
    here = torch.arange(len(nodes.pixel), device=nodes.pixel.device)
    return nodes.slots[nodes.pixel, 0] == here


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


class _PixelsToSegments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, pixel: Tensor, offsets: Tensor, size: Tensor, slots: Tensor
    ) -> Tensor:
        ctx.save_for_backward(size, slots)
        # Detached, or torch prepares a backward pass of its own.
        return F.embedding_bag(pixel, pixels.detach(), offsets, mode="sum") / size

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        size, slots = ctx.saved_tensors
        return _sum_over_slots(grad / size, slots), None, None, None, None


class _SegmentsToPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, pixel: Tensor, offsets: Tensor, slots: Tensor, held: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(pixel, offsets, held)
        return _sum_over_slots(rows, slots)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixel, offsets, held = ctx.saved_tensors
        held = None if held is None else held.to(grad.dtype)
        grad = F.embedding_bag(
            pixel, grad.contiguous(), offsets, mode="sum", per_sample_weights=held
        )
        return grad, None, None, None, None


class Segments:
    """The class graphs of a batch as rows of their own, for edges that treat all nodes alike.

    S segments, the non-empty (class, image) pairs in the order of the nodes.
    """

    def __init__(self, nodes: NodeSet, lengths: Sequence[int], coarse_only: bool = False):
        """
        Args:
            nodes: K nodes of P pixels.
            lengths: S positive numbers of nodes that sum to K.
            coarse_only: whether only the nodes of their coarse class take part in
                :meth:`to_pixels`.
        """
        if sum(lengths) != len(nodes.pixel) or any(n < 1 for n in lengths):
            raise ValueError(
                f"lengths must be positive and sum to the {len(nodes.pixel)} nodes, got {lengths}"
            )
        device = nodes.pixel.device
        # Pinned memory: copied without the host waiting.
        size = torch.tensor(lengths, dtype=torch.long, pin_memory=device.type == "cuda")
        size = size.to(device, non_blocking=True)
        segment = torch.arange(len(lengths), device=device).repeat_interleave(
            size, output_size=len(nodes.pixel)
        )
        self.pixel = nodes.pixel
        self.size = size[:, None]
        self.offsets = size.cumsum(0) - size
        # -1, no node, reads the last entry: no segment.
        self.slots = torch.cat([segment, segment.new_full((1,), -1)])[_slots(nodes)]
        self.held, self.held_slots = None, self.slots
        if coarse_only and not nodes.single:
            self.held, self.held_slots = coarse_nodes(nodes), self.slots[:, :1]

    def mean(self, pixels: Tensor) -> Tensor:
        """A X for uniform edges A = 1/n, once per segment: (P, C) -> (S, C)."""
        return _PixelsToSegments.apply(pixels, self.pixel, self.offsets, self.size, self.slots)

    def to_pixels(self, rows: Tensor) -> Tensor:
        """The sum over the segments that hold a pixel: (S, C) -> (P, C)."""
        return _SegmentsToPixels.apply(rows, self.pixel, self.offsets, self.held_slots, self.held)


def pixels_to_nodes(pixels: Tensor, nodes: NodeSet) -> Tensor:
    """The features of every node: (P, C) -> (K, C)."""
    return _PixelsToNodes.apply(pixels, nodes.pixel, _slots(nodes))


def nodes_to_pixels(rows: Tensor, nodes: NodeSet) -> Tensor:
    """The sum over each pixel's nodes, zero where it has none: (K, C) -> (P, C)."""
    return _NodesToPixels.apply(rows, nodes.pixel, _slots(nodes))
