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
from cdgc.grouped_linear import class_linear
from cdgc.kernels import DEVICES, Lengths
from cdgc.messages import Segment
from cdgc.packed_attention import PackedKernel, layout_of, packed_kernel, packed_sums

# Numbers that are held at once (64 MiB in float32; 512 MiB on a GPU, which prefers fewer, larger
# launches). What exceeds them is recomputed in the backward pass.
_HELD = 1 << 24
_HELD_GPU = 1 << 27
# Attention weights of an image that a CPU stores (8 MiB in float32). Beyond its caches, fused
# attention is faster.
_STORED_CPU = 1 << 21


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
        self.narrowest, self.widest = narrowest, widest
        self.log_precision = nn.Parameter(torch.empty(heads))  # log 1/σ, (H,)
        self.offset = nn.Parameter(torch.empty(heads, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial widths, and small random offsets."""
        heads = len(self.log_precision)
        steps = torch.linspace(math.log(self.narrowest), math.log(self.widest), heads)
        with torch.no_grad():
            self.log_precision.copy_(-steps)
            self.offset.normal_().mul_(0.3)

    def extend(self, q: Tensor, k: Tensor, positions: Tensor, nodes: Tensor) -> list[Tensor]:
        """Extend queries and keys so that their products contain the bias.

        ``-½ (g (y_j - y_i) - o)²`` is ``(g² y_i + g o) y_j - ½ g² y_j²`` plus terms of i alone,
        which cancel in the softmax: three more channels replace an N x n matrix. The keys get whole
        numbers, so that all gradients go to the queries. There they are sums over the nodes of a
        pixel, whose logits have gradients that sum to 0, so that large positions cancel.

        Where products of matrices round their factors, each factor is a sum of parts that are not
        rounded, and each product of two parts is a channel of its own. In half precision a head
        narrower than :data:`_NARROWEST` counts as that wide.

        Args:
            q: (H, N, D) queries, scaled.
            k: (H, n, D) keys.
            positions: (N, 2) positions of the pixels (y, x), whole numbers in float32 at least; in
                half precision up to :data:`_FARTHEST`.
            nodes: (n,) int64, the pixel of each node.

        Returns:
            (H, N, D + 3) queries and (H, n, D + 3) keys; D + 12 in half precision and on a GPU.
        """
        g = self.log_precision.exp()[:, None, None]  # (H, 1, 1)
        if q.dtype.itemsize < 4:
            g = g.clamp(max=1 / _NARROWEST)
        heads, pixels = len(q), len(positions)
        slope = g * (g * positions + self.offset[:, None])  # (H, N, 2)
        curvature = (-0.5 * _UNIT * g**2).expand(-1, pixels, 1)
        radius = positions.square().sum(1, keepdim=True) / _UNIT
        # Side by side, because on a GPU every operation of the parts costs a launch.
        parts = _parts(
            torch.cat([slope, curvature, radius.expand(heads, -1, 1)], 2), _exact_dtype(k)
        )
        slopes, curvatures, radii = zip(*(p.split([2, 1, 1], 2) for p in parts), strict=True)
        pairs = [(c, r) for i, c in enumerate(curvatures) for r in radii[: len(radii) - i]]
        of_pixel = torch.cat([*slopes, *(c for c, _ in pairs)], 2)
        as_key = torch.cat([*[positions] * len(parts), *(r[0].detach() for _, r in pairs)], 1)
        of_node = as_key.to(k.dtype).index_select(0, nodes)
        return [
            torch.cat([q, of_pixel.to(q.dtype)], 2),
            torch.cat([k, of_node.expand(heads, -1, -1)], 2),
        ]

    @staticmethod
    def channels(dtype: torch.dtype) -> int:
        """How many channels :meth:`extend` adds."""
        return 12 if dtype.itemsize < 4 else 3


# All whole numbers up to this one are numbers of bfloat16 (and of float16).
_FARTHEST = 256
# σ of the narrowest head in half precision, in nodes. Without a limit float16 would overflow. Here
# neighboring nodes differ by a factor of exp(-32): the head attends to one node already.
_NARROWEST = 1 / 8
# Keys hold squared distances divided by this, because those themselves do not fit into float16.
_UNIT = 64.0


def _exact_dtype(like: Tensor) -> torch.dtype:
    """A dtype whose numbers a product of such matrices does not round.

    On a GPU a user may allow TF32 or bfloat16 in products of float32
    (torch.set_float32_matmul_precision).
    """
    on_gpu = like.dtype == torch.float32 and like.device.type in DEVICES
    return torch.bfloat16 if on_gpu else like.dtype


def _parts(x: Tensor, exact: torch.dtype) -> list[Tensor]:
    """Numbers of ``exact`` whose sum is x, in its dtype; the first has the gradient of x."""
    if exact.itemsize >= 4:
        return [x]
    first = x.detach().to(exact).to(x)
    rest = x.detach() - first
    second = rest.to(exact).to(x)
    return [x - rest, second, (rest - second).to(exact).to(x)]


def attention_dtype(
    pixels: Tensor, size: tuple[int, int], heads: int, distance: DistanceBias | None
) -> torch.dtype:
    """The dtype in which :func:`joint_messages` computes: float32 at least, or that of autocast.

    The latter needs a packed kernel, because logits stored in half precision would lose the
    distance bias, and a map whose positions fit into it.
    """
    full = torch.promote_types(pixels.dtype, torch.float32)
    if not torch.is_autocast_enabled(pixels.device.type) or full == torch.float64:
        return full
    half = torch.get_autocast_dtype(pixels.device.type)
    if distance is not None and max(size) > 2 * _FARTHEST:
        return full
    return full if _packed(pixels, half, heads, distance) is None else half


def _packed(
    like: Tensor, dtype: torch.dtype, heads: int, distance: DistanceBias | None
) -> PackedKernel | None:
    """The kernel for features like these in ``dtype``, if there is one."""
    channels = like.shape[1] // heads
    more = 0 if distance is None else distance.channels(dtype)
    return packed_kernel(like.device, dtype, channels + more, channels)


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
    kernel = _packed(pixels, pixels.dtype, heads, distance) if segments else None
    phi, phi_prime, graph, merge = projections
    if kernel is not None:
        q = _by_head(pixels @ phi, heads) * scale  # (H, P, D)
        k = _by_head(nodes @ phi_prime, heads)
        if distance is not None:
            q, k = distance.extend(q, k, _positions(size, images, pixels), node_pixels)
        return _packed_messages(q, k, nodes, segments, images, graph, merge, kernel)
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
            # Without nodes there still is a gradient path to every parameter. A sum of no numbers
            # is 0 whatever the parameters are; a sum of all could overflow in float16.
            parameters = (*projections, *(distance.parameters() if distance is not None else ()))
            nothing = torch.cat([p[:0].flatten() for p in parameters]).sum()
            out.append(0 * x + nothing.to(x.dtype))
            continue
        values = torch.cat([rows[s] for s in own])  # (n, C)
        index = torch.cat([places[s] for s in own]) - b * per_image
        q = _by_head(x @ phi, heads) * scale
        k, v = _by_head(values @ phi_prime, heads), _by_head(values, heads)
        if distance is not None:
            q, k = distance.extend(q, k, _positions(size, 1, x), index)
        classes = [segments[s].class_index for s in own]
        w, u = [ws[m] for m in classes], [us[m] for m in classes]
        out.append(_image_messages(q, k, v, [lengths[s] for s in own], w, u, images))
    return torch.cat(out) if out else torch.zeros_like(pixels)


def _packed_messages(
    q: Tensor,
    k: Tensor,
    nodes: Tensor,
    segments: Sequence[Segment],
    images: int,
    graph: Tensor,
    merge: Tensor,
    kernel: PackedKernel,
) -> Tensor:
    """Messages to the queries (H, P, D') of all images from the keys (H, K, D'), (P, C)."""
    heads = len(q)
    layout = layout_of(segments, images, q.device)
    q = q.transpose(0, 1).unflatten(0, (images, -1))  # (B, N, H, D')
    k, v = k.transpose(0, 1), nodes.unflatten(1, (heads, -1))
    of_class = [0] * len(graph)  # images in which it is present
    for segment in segments:
        of_class[segment.class_index] += 1

    def block(q: Tensor, k: Tensor, v: Tensor, graph: Tensor, merge: Tensor) -> Tensor:
        y = packed_sums(q, k, v, layout, kernel)  # (S, n, C)
        lengths = Lengths(n * y.shape[1] for n in of_class)
        z = class_linear(y.flatten(0, 1), graph, lengths).relu()
        z = class_linear(z, merge, lengths).view_as(y)
        # A product with 0 and 1 adds the classes of each image.
        return (layout.member.to(z.dtype) @ z.flatten(1)).view(images, -1, z.shape[2])

    # y, y W and its ReLU, for each class, in half precision.
    blocks = math.ceil(3 * len(segments) * q.shape[1] * nodes.shape[1] / (2 * _HELD_GPU))
    if blocks == 1:
        return block(q, k, v, graph, merge).flatten(0, 1)
    parts = [
        checkpoint(block, part, k, v, graph, merge, use_reentrant=False, preserve_rng_state=False)
        for part in q.chunk(blocks, dim=1)
    ]
    return torch.cat(parts, dim=1).flatten(0, 1)


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
    large = weights * q.shape[1] > _STORED_CPU
    fused = large and on_cpu and can_fuse(q.dtype)
    sums = 3 * len(counts) * v.shape[0] * v.shape[2]  # y, y W and its ReLU, for each class
    per_query = sums if fused else sums + weights
    if images * q.shape[1] * per_query <= held:
        return _block(q, k, v, counts, graph, merge, fused)
    parts = [
        checkpoint(
            _block,
            part,
            k,
            v,
            counts,
            graph,
            merge,
            fused,
            use_reentrant=False,
            preserve_rng_state=False,
        )
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


def _positions(size: tuple[int, int], images: int, like: Tensor) -> Tensor:
    """Row and column of every pixel relative to the center of its map: (P, 2), whole numbers.

    They have the dtype of ``like``, or float32.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    y, x = (torch.arange(-(n // 2), n - n // 2, device=like.device, dtype=dtype) for n in size)
    shape = (images, *size)
    return torch.stack([y[:, None].expand(shape), x.expand(shape)], dim=-1).view(-1, 2)
