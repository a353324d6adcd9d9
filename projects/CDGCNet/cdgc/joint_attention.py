"""Messages from all class graphs through one softmax over all nodes of an image (softmax="image").

With softmax="class" every class graph has a softmax of its own, so each class speaks with the same
weight to every pixel. Here a pixel distributes its attention over the nodes of all classes at once,

    a_ij = softmax over all nodes j of the image of  scale · φ(x_i)ᵀ φ'(x_j) + distance bias,
    X̂_i  = Σ_m U_m ReLU((Σ_{j ∈ S_m} a_ij x_j) W_m),

so a class with no relevant nodes sends a pixel almost nothing. Attention has several heads, each
with its own part of the channels and, on request, a learned Gaussian preference for certain
distances and directions (:class:`DistanceBias`): near heads work like the branches of an ASPP,
far ones like a non-local block, but their messages remain separate by class.

Shape shorthand: B images of N = h*w pixels, P = B*N, K nodes sorted by class, then image, n nodes
of one image, H heads, C channels, D = C / H channels per head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdgc.class_sums import can_fuse, class_sums
from cdgc.messages import Segment

# Numbers that are held at once (64 MiB in float32; 256 MiB on a GPU, which prefers fewer, larger
# launches). What exceeds them is recomputed in the backward pass.
_HELD = 1 << 24
_HELD_GPU = 1 << 26
# Attention weights of an image that are stored (8 MiB in float32). Beyond a CPU's caches, fused
# attention is faster.
_STORED = 1 << 21


class DistanceBias(nn.Module):
    """A Gaussian over the displacement from a pixel to a node, for each head.

    The bias of head h for a displacement (dy, dx), in nodes of the feature map, is
    ``-½ (dy/σ_h - o_hy)² - ½ (dx/σ_h - o_hx)²`` with a learned width σ_h and a learned offset o_h.
    """

    def __init__(self, heads: int, narrowest: float = 1.0, widest: float = 64.0):
        """
        Args:
            heads: H.
            narrowest, widest: initial σ of the first and the last head, in nodes; the others lie
                between them in geometric steps.
        """
        super().__init__()
        steps = torch.linspace(math.log(narrowest), math.log(widest), heads)
        self.log_precision = nn.Parameter(-steps)  # log 1/σ, (H,)
        self.offset = nn.Parameter(0.3 * torch.randn(heads, 2))

    def extend(self, q: Tensor, k: Tensor, of_pixels: Tensor, of_nodes: Tensor) -> list[Tensor]:
        """Extend queries and keys so that their products contain the bias.

        ``-½ (g (y_j - y_i) - o)²`` is ``g² y_i y_j - ½ g² y_j² + g o y_j`` plus terms of i alone,
        which cancel in the softmax: three more channels replace an N x n matrix.

        Args:
            q: (H, N, D) queries, scaled.
            k: (H, n, D) keys.
            of_pixels: (N, 2) positions of the pixels (y, x), centered.
            of_nodes: (n, 2) positions of the nodes.

        Returns:
            (H, N, D + 3) queries and (H, n, D + 3) keys.
        """
        g = self.log_precision.exp()[:, None, None]  # (H, 1, 1)
        near, far = g * of_pixels, g * of_nodes  # (H, N, 2), (H, n, 2)
        from_node = (far * (self.offset[:, None] - 0.5 * far)).sum(2, keepdim=True)
        one = torch.ones_like(near[:, :, :1])
        return [torch.cat([q, near, one], 2), torch.cat([k, far, from_node], 2)]


def joint_messages(
    pixels: Tensor,
    nodes: Tensor,
    node_pixels: Tensor,
    projections: Sequence[Tensor],
    segments: Sequence[Segment],
    *,
    size: tuple[int, int],
    images: int,
    heads: int,
    scale: float,
    distance: DistanceBias | None,
) -> Tensor:
    """X̂ of every pixel, see the top of this module.

    Args:
        pixels: (P, C) features, finite.
        nodes: (K, C) features of the nodes.
        node_pixels: (K,) int64, the pixel of each node.
        projections: φ and φ' (C, C), W and U (M, C, C).
        segments: the segments of the K nodes.
        size: (h, w) of the feature map.
        images: B.
        heads, scale, distance: of the attention.

    Returns:
        (P, C). Cost: one attention over all pixels and nodes, and two C x C products per pixel and
        present class; memory O(P·C), as blocks of queries are recomputed in the backward pass where
        all of them would take too much.
    """
    phi, phi_prime, graph, merge = projections
    # unbind and split instead of indexing: the backward of an index allocates the full size.
    ws, us = graph.unbind(0), merge.unbind(0)
    lengths = [s.length for s in segments]
    rows = nodes.split(lengths) if segments else ()
    places = node_pixels.split(lengths) if segments else ()
    per_image = size[0] * size[1]
    out = []
    for b, x in enumerate(pixels.chunk(images) if images else ()):
        own = [s for s, segment in enumerate(segments) if segment.image == b]
        if not own:
            # Without nodes there still is a gradient path to every parameter.
            nothing = phi.sum() + phi_prime.sum() + graph.sum() + merge.sum()
            if distance is not None:
                nothing = nothing + distance.log_precision.sum() + distance.offset.sum()
            out.append(0 * (x + nothing.to(x.dtype)))
            continue
        values = torch.cat([rows[s] for s in own])  # (n, C)
        index = torch.cat([places[s] for s in own]) - b * per_image
        q = _by_head(x @ phi, heads) * scale
        k, v = _by_head(values @ phi_prime, heads), _by_head(values, heads)
        if distance is not None:
            position = _positions(size, x)
            q, k = distance.extend(q, k, position, position[index])
        classes = [segments[s].class_index for s in own]
        w, u = [ws[m] for m in classes], [us[m] for m in classes]
        out.append(_image_messages(q, k, v, [lengths[s] for s in own], w, u, images))
    return torch.cat(out) if out else torch.zeros_like(pixels)


def _image_messages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: list[int],
    graph: list[Tensor],
    merge: list[Tensor],
    images: int,
) -> Tensor:
    """Messages to the queries (H, N, D') of one of several images, (N, C)."""
    on_cpu = q.device.type == "cpu"
    held = _HELD if on_cpu else _HELD_GPU
    weights = len(q) * k.shape[1]  # of one query
    fused = weights * q.shape[1] > _STORED and can_fuse(q.device.type, q.dtype)
    sums = 3 * len(counts) * v.shape[0] * v.shape[2]  # y, y W and its ReLU, for each class
    per_query = sums if fused else sums + weights
    if images * q.shape[1] * per_query <= held:
        return _block(q, k, v, counts, graph, merge, fused)
    parts = [
        checkpoint(_block, part, k, v, counts, graph, merge, fused, use_reentrant=False)
        for part in q.split(max(1, held // per_query), dim=1)
    ]
    return torch.cat(parts)


def _block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: list[int],
    graph: list[Tensor],
    merge: list[Tensor],
    fused: bool,
) -> Tensor:
    """Messages to one block of queries (H, q, D'), (q, C)."""
    total: Tensor | None = None
    for gathered, w, u in zip(class_sums(q, k, v, counts, fused), graph, merge, strict=True):
        message = (gathered @ w).relu() @ u
        total = message if total is None else total + message
    assert total is not None
    return total


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """(n, C) -> (H, n, C / H)."""
    return rows.unflatten(1, (heads, -1)).transpose(0, 1)


def _positions(size: tuple[int, int], like: Tensor) -> Tensor:
    """Row and column of every pixel, (N, 2), relative to the center of the map."""
    height, width = size
    y = torch.arange(height, device=like.device, dtype=like.dtype) - (height - 1) / 2
    x = torch.arange(width, device=like.device, dtype=like.dtype) - (width - 1) / 2
    return torch.stack([y.repeat_interleave(width), x.repeat(height)], dim=1)
