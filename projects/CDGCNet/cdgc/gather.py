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


def map_to_rows(x: Tensor) -> Tensor:
    """The features of all pixels: (B, C, h, w) -> (P, C), contiguous."""
    return _MapToRows.apply(x)


def rows_to_map(rows: Tensor, like: Tensor) -> Tensor:
    """All pixels as a map of the shape of ``like``: (P, C) -> (B, C, h, w), channels_last."""
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def in_layout_of(like: Tensor, x: Tensor) -> Tensor:
    """A channels_last map in the memory layout of another, where both will meet."""
    return x if _is_channels_last(like) else _ChannelsFirst.apply(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _channels_first(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """(P, C), contiguous -> (B, C, h, w), contiguous."""
    batch, channels, height, width = shape
    rows = rows.view(batch, height * width, channels)
    if rows.device.type == "cpu":
        # torch has a fast transpose for two dimensions only: a quarter of the time.
        out = rows.new_empty(batch, channels, height * width)
        for image, place in zip(rows, out, strict=True):
            place.copy_(image.t())
    else:
        out = rows.transpose(1, 2).contiguous()
    return out.view(batch, channels, height, width)


class _MapToRows(torch.autograd.Function):
    """The gradient comes back in the layout of the map, or every reader would convert it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape, ctx.channels_last = x.shape, _is_channels_last(x)
        return x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        batch, channels, height, width = ctx.shape
        if ctx.channels_last:
            return grad.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return _channels_first(grad.contiguous(), ctx.shape)


class _ChannelsFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).contiguous().view(-1, x.shape[1])
        return _channels_first(rows, x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


def _sum_over_slots(rows: Tensor, slots: Tensor, full: bool = False) -> Tensor:
    """Each pixel's nodes added up: rows (K, C), slots (P, 1 or 2) -> (P, C).

    ``full``: no slot is -1.
    """
    if not full:
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # what slot -1 reads
        slots = torch.where(slots < 0, len(rows) - 1, slots)
    # index_select: two thirds of the time of indexing.
    out = rows.index_select(0, slots[:, 0])
    return out if slots.shape[1] == 1 else out.add_(rows.index_select(0, slots[:, 1]))


def _full(nodes: NodeSet) -> bool:
    """Whether every pixel is one node: both gathers are permutations."""
    return nodes.single and len(nodes.pixel) == len(nodes.slots)


def _slots(nodes: NodeSet) -> Tensor:
    """Without the second column where no pixel has a second node."""
    return nodes.slots[:, :1] if nodes.single else nodes.slots


def coarse_nodes(nodes: NodeSet) -> Tensor:
    """Which of the K nodes stand in the graph of their pixel's coarse class, (K,) bool."""
    here = torch.arange(len(nodes.pixel), device=nodes.pixel.device)
    return nodes.slots[nodes.pixel, 0] == here


class _PixelsToNodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, pixel: Tensor, slots: Tensor, full: bool) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.full = full
        return pixels.index_select(0, pixel)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_over_slots(grad, ctx.saved_tensors[0], ctx.full), None, None, None


class _NodesToPixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, pixel: Tensor, slots: Tensor, full: bool) -> Tensor:
        ctx.save_for_backward(pixel)
        return _sum_over_slots(rows, slots, full)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None, None


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
        slots = _slots(nodes)
        if _full(nodes):
            self.slots = segment[slots]
        else:  # -1, no node, reads the last entry: no segment
            self.slots = torch.cat([segment, segment.new_full((1,), -1)])[slots]
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
    return _PixelsToNodes.apply(pixels, nodes.pixel, _slots(nodes), _full(nodes))


def nodes_to_pixels(rows: Tensor, nodes: NodeSet) -> Tensor:
    """The sum over each pixel's nodes, zero where it has none: (K, C) -> (P, C)."""
    return _NodesToPixels.apply(rows, nodes.pixel, _slots(nodes), _full(nodes))
