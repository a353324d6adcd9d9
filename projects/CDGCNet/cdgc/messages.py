"""Messages from every class graph to every pixel (receivers="all").

Here a pixel listens to the graphs of all classes of its image, not only to the graphs it is a node
of: X̂_i = Σ_m w_im U_m ReLU(A_m X W_m)_i, where A_m has a row for every valid pixel, a column for
every node of S_m, and one softmax per row.

Shape shorthand: B images of N pixels, P = B*N, M classes, K nodes sorted by class, then image,
S segments (the non-empty (class, image) pairs), n nodes of one segment, C channels.

The segments are processed one after the other. Only the attention outputs of the few largest
segments are kept for the backward pass; the others are computed again, so memory is O(P·C) for any
number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Attends from all pixels of an image to the nodes of one segment:
# (q (N, C), k (n, C), v (n, C), log_weight (n,) or None) -> (N, C).
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

# Segments whose attention outputs are kept. Recomputing a segment costs as much as its share of
# the keys, keeping it costs N*C numbers: the largest segments are the ones to keep.
_KEPT_SEGMENTS = 4


def segments_of(counts: Sequence[Sequence[int]]) -> list[Segment]:
    """The non-empty segments for M x B node counts, in the order of the nodes."""
    return [
        Segment(m, image, n)
        for m, per_image in enumerate(counts)
        for image, n in enumerate(per_image)
        if n
    ]


def attention_messages(
    pixels: Tensor,
    keys: Tensor,
    values: Tensor,
    phi: Tensor,
    merge_weight: Tensor,
    segments: Sequence[Segment],
    attend: Attend,
    *,
    images: int,
    log_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Σ_m w_im U_m ReLU(A_m X W_m)_i of every pixel, with A_m given by ``attend``.

    Args:
        pixels: (P, C) features, finite.
        keys: (K, C), φ'(x) of the nodes.
        values: (K, C), x W_m of the nodes.
        phi: (1 or M, C, C), φ of all classes or of each class.
        merge_weight: (M, C, C), U.
        segments: the S segments of the K nodes.
        attend: see :data:`Attend`.
        images: B.
        log_weight: (K,), passed on to ``attend``.
        class_weight: (P, M), w_im; None for 1.

    Returns:
        (P, C).
    """
    lengths = [s.length for s in segments]
    # unbind and split instead of indexing: the backward of an index allocates the full size.
    phis, us = phi.unbind(0), merge_weight.unbind(0)
    rows = pixels.chunk(images) if images else ()
    shared_queries = [x @ phis[0] for x in rows] if len(phis) == 1 else None
    weights = log_weight.split(lengths) if log_weight is not None else [None] * len(segments)

    def message(segment: Segment, x: Tensor, k: Tensor, v: Tensor, w: Tensor | None) -> Tensor:
        q = shared_queries[segment.image] if shared_queries else x @ phis[segment.class_index]
        return _ReluLinear.apply(attend(q, k, v, w), us[segment.class_index])

    kept = sorted(range(len(segments)), key=lambda s: -lengths[s])[:_KEPT_SEGMENTS]
    total = [torch.zeros_like(x, dtype=values.dtype) for x in rows]
    blocks = zip(segments, keys.split(lengths), values.split(lengths), weights, strict=True)
    for s, (segment, k, v, w) in enumerate(blocks if segments else ()):
        arguments = (segment, rows[segment.image], k, v, w)
        if s in kept:
            found = message(*arguments)
        else:
            found = checkpoint(message, *arguments, use_reentrant=False, preserve_rng_state=False)
        if class_weight is not None:
            image_weight = class_weight.chunk(images)[segment.image]
            found = found * image_weight[:, segment.class_index, None].to(found.dtype)
        total[segment.image].add_(found)
    merged = torch.cat(total) if total else torch.zeros_like(pixels, dtype=values.dtype)
    if segments:
        return merged
    # Without any node there still is a gradient path to every parameter. A sum of no numbers is 0
    # whatever the parameters are; a sum of all could overflow in float16.
    nothing = torch.cat([x[:0].flatten() for x in (keys, values, phi, merge_weight)]).sum()
    return merged + nothing.to(merged)


def segment_messages(
    rows: Tensor,
    segments: Sequence[Segment],
    *,
    images: int,
    pixels: int,
    class_weight: Tensor | None = None,
) -> Tensor:
    """The same for uniform edges, where a segment sends one message to all pixels.

    Args:
        rows: (S, C), U_m ReLU(A_m X W_m) of each segment.
        segments: the S segments.
        images, pixels: B and N.
        class_weight: (P, M), w_im; None for 1.

    Returns:
        (P, C).
    """
    out = []
    for image in range(images):
        own = [s for s, segment in enumerate(segments) if segment.image == image]
        messages = rows[own]
        if class_weight is None:
            out.append(messages.sum(0, keepdim=True).expand(pixels, -1))
        else:
            classes = [segments[s].class_index for s in own]
            out.append(class_weight.chunk(images)[image][:, classes].to(rows.dtype) @ messages)
    return torch.cat(out) if out else rows.new_zeros(0, rows.shape[1])


class Segment(NamedTuple):
    """The graph of one class in one image, with its number of nodes."""

    class_index: int
    image: int
    length: int


class _ReluLinear(torch.autograd.Function):
    """ReLU(y) @ u; keeps y, which attention keeps anyway, and not ReLU(y)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, u: Tensor) -> Tensor:
        u = u.to(y.dtype)
        ctx.save_for_backward(y, u)
        return y.relu() @ u

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, u = ctx.saved_tensors
        grad_y = (grad @ u.t()).masked_fill_(y <= 0, 0)
        return grad_y, y.relu().t() @ grad
