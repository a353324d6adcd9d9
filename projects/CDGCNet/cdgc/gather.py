"""Moving features between maps, pixels, nodes and segments.

Shape shorthand: B images, P = B*N pixels, K nodes, S segments (the graph of one class in one
image), C channels. A pixel has at most two nodes, so both the sum over the nodes of a pixel and
all gradients are gathers: there are no atomic additions, and every run gives the same result.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc.kernels import to_device
from cdgc.nodes import NodeSet


def map_to_rows(x: Tensor) -> Tensor:
    """Turn a map into one row per pixel: (B, C, h, w) -> (P, C), contiguous."""
    return _MapToRows.apply(x)


def rows_to_map(rows: Tensor, like: Tensor) -> Tensor:
    """View rows as a map of the shape of ``like``: (P, C) -> (B, C, h, w), channels_last."""
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def in_layout_of(like: Tensor, x: Tensor) -> Tensor:
    """Convert a channels_last map to the memory layout of the map it will be combined with."""
    return x if _is_channels_last(like) else _ChannelsFirst.apply(x)


def is_coarse_node(nodes: NodeSet) -> Tensor:
    """Mask of the nodes that belong to the graph of their pixel's coarse class: (K,) bool."""
    own_index = torch.arange(len(nodes.pixel), device=nodes.pixel.device)
    return nodes.node_index[nodes.pixel, 0] == own_index


def pixels_to_nodes(pixels: Tensor, nodes: NodeSet) -> Tensor:
    """Copy the features of each pixel to its nodes: (P, C) -> (K, C)."""
    return _PixelsToNodes.apply(pixels, nodes.pixel, _node_index(nodes), _is_complete(nodes))


def nodes_to_pixels(rows: Tensor, nodes: NodeSet) -> Tensor:
    """Sum over the nodes of each pixel, zero where it has none: (K, C) -> (P, C)."""
    return _NodesToPixels.apply(rows, nodes.pixel, _node_index(nodes), _is_complete(nodes))


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _channels_first(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """(P, C), contiguous -> (B, C, h, w), contiguous."""
    batch, channels, height, width = shape
    rows = rows.view(batch, height * width, channels)
    if rows.device.type == "cpu":
        # torch transposes two-dimensional tensors in a quarter of the time.
        out = rows.new_empty(batch, channels, height * width)
        for image, target in zip(rows, out, strict=True):
            target.copy_(image.t())
    else:
        out = rows.transpose(1, 2).contiguous()
    return out.view(batch, channels, height, width)


def _sum_over_nodes(rows: Tensor, node_index: Tensor, complete: bool) -> Tensor:
    """Add up the nodes of each pixel.

    Args:
        rows: (K, C).
        node_index: (P, 1 or 2), -1 for no node.
        complete: whether no entry is -1.

    Returns:
        (P, C).
    """
    if not complete:
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # read by index -1
        node_index = torch.where(node_index < 0, len(rows) - 1, node_index)
    # index_select takes two thirds of the time of indexing.
    out = rows.index_select(0, node_index[:, 0])
    return out if node_index.shape[1] == 1 else out.add_(rows.index_select(0, node_index[:, 1]))


def _is_complete(nodes: NodeSet) -> bool:
    """Whether every pixel has exactly one node, so that both gathers are permutations."""
    return nodes.disjoint and len(nodes.pixel) == len(nodes.node_index)


def _node_index(nodes: NodeSet) -> Tensor:
    """``node_index`` without its second column where no pixel has a second node."""
    return nodes.node_index[:, :1] if nodes.disjoint else nodes.node_index


class UniformGraphs:
    """The class graphs of a batch as one row each, for edges that treat all nodes alike.

    The S segments are the non-empty (class, image) pairs in the order of the nodes.
    """

    def __init__(self, nodes: NodeSet, lengths: Sequence[int], coarse_only: bool = False):
        """
        Args:
            nodes: K nodes of P pixels.
            lengths: S positive node counts that sum to K.
            coarse_only: whether :meth:`to_pixels` skips hard positives.

        Raises:
            ValueError: if the lengths do not fit.
        """
        if sum(lengths) != len(nodes.pixel) or any(n < 1 for n in lengths):
            raise ValueError(
                f"lengths must be positive and sum to the {len(nodes.pixel)} nodes, got {lengths}"
            )
        device = nodes.pixel.device
        ends = list(itertools.accumulate(lengths))
        starts = [end - n for end, n in zip(ends, lengths, strict=True)]
        size, self.offsets, bounds = to_device([*lengths, *starts, *ends], device).view(3, -1)
        rows = torch.arange(len(nodes.pixel), device=device)
        segment = torch.searchsorted(bounds, rows, right=True)
        self.pixel = nodes.pixel
        self.size = size[:, None]
        node_index = _node_index(nodes)
        self.complete = _is_complete(nodes)
        if self.complete:
            self.index = segment[node_index]
        else:  # index -1, no node, reads the last entry: no segment
            self.index = torch.cat([segment, segment.new_full((1,), -1)])[node_index]
        self.coarse_mask, self.receiving_index = None, self.index
        if coarse_only and not nodes.disjoint:
            self.coarse_mask, self.receiving_index = is_coarse_node(nodes), self.index[:, :1]

    def mean(self, pixels: Tensor) -> Tensor:
        """A X for uniform edges A = 1/n, once per segment: (P, C) -> (S, C)."""
        return _PixelsToSegments.apply(
            pixels, self.pixel, self.offsets, self.size, self.index, self.complete
        )

    def to_pixels(self, rows: Tensor) -> Tensor:
        """Sum over the segments that contain a pixel: (S, C) -> (P, C)."""
        return _SegmentsToPixels.apply(
            rows, self.pixel, self.offsets, self.receiving_index, self.coarse_mask, self.complete
        )


class _MapToRows(torch.autograd.Function):
    """Returns the gradient in the layout of the map, so that no reader has to convert it."""

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


class _PixelsToNodes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, pixel: Tensor, node_index: Tensor, complete: bool
    ) -> Tensor:
        ctx.save_for_backward(node_index)
        ctx.complete = complete
        return pixels.index_select(0, pixel)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (node_index,) = ctx.saved_tensors
        return _sum_over_nodes(grad, node_index, ctx.complete), None, None, None


class _NodesToPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, pixel: Tensor, node_index: Tensor, complete: bool
    ) -> Tensor:
        ctx.save_for_backward(pixel)
        return _sum_over_nodes(rows, node_index, complete)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (pixel,) = ctx.saved_tensors
        return grad.index_select(0, pixel), None, None, None


class _PixelsToSegments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        pixel: Tensor,
        offsets: Tensor,
        size: Tensor,
        index: Tensor,
        complete: bool,
    ) -> Tensor:
        ctx.save_for_backward(size, index)
        ctx.complete = complete
        # Detached, because torch would otherwise prepare a backward pass of its own.
        return F.embedding_bag(pixel, pixels.detach(), offsets, mode="sum") / size

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        size, index = ctx.saved_tensors
        found = _sum_over_nodes(grad / size, index, ctx.complete)
        return found, None, None, None, None, None


class _SegmentsToPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        pixel: Tensor,
        offsets: Tensor,
        index: Tensor,
        coarse_mask: Tensor | None,
        complete: bool,
    ) -> Tensor:
        ctx.save_for_backward(pixel, offsets, coarse_mask)
        return _sum_over_nodes(rows, index, complete)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixel, offsets, mask = ctx.saved_tensors
        weights = None if mask is None else mask.to(grad.dtype)
        grad = F.embedding_bag(
            pixel, grad.contiguous(), offsets, mode="sum", per_sample_weights=weights
        )
        return grad, None, None, None, None, None
