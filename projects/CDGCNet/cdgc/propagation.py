"""Propagation over the chosen nodes: Σ_m w_im U_m ReLU(A_m X W_m)_i of every pixel i (Eq. 1).

With receivers="nodes", A_m has a row for every node of S_m. With receivers="all" it has a row for
every valid pixel of the image, while S_m still holds the keys and values, with one softmax per
class and pixel (:mod:`cdgc.messages`) or one per pixel over all classes, which is the default of
this project (:mod:`cdgc.joint_attention`).

Shape shorthand: B images of N pixels, P = B*N, M classes, K nodes sorted by class, then image,
S segments (the non-empty (class, image) pairs), C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cdgc.attention import attend, attend_topk, segment_attention, segment_topk_attention
from cdgc.gather import UniformGraphs, is_coarse_node, nodes_to_pixels, pixels_to_nodes
from cdgc.grouped_linear import class_linear
from cdgc.joint_attention import DistanceBias, attention_dtype, joint_messages
from cdgc.kernels import DEVICES, Lengths, in_autocast_dtype
from cdgc.messages import Segment, attention_messages, segment_messages, segments_of
from cdgc.nodes import NodeSet
from cdgc.validation import check_choice

SCALES = ("none", "sqrt")


def scale_factor(scale: float | str, channels: int) -> float:
    """The factor that the ``scale`` option of :class:`CDGCModule` means."""
    if isinstance(scale, str):
        check_choice("scale", scale, SCALES)
        return channels**-0.5 if scale == "sqrt" else 1.0
    if not scale > 0:
        raise ValueError(f"scale must be positive or one of {SCALES}, got {scale}")
    return float(scale)


def propagate_to_nodes(
    pixels: Tensor, nodes: NodeSet, weights: GraphWeights, edges: Edges, coarse_only: bool
) -> Tensor:
    """Propagate with receivers="nodes".

    Args:
        pixels: (P, C) features.
        nodes: K nodes.
        weights, edges: of the graphs.
        coarse_only: whether hard positives receive nothing from the graph of their true class.

    Returns:
        (P, C), zero for pixels that are no nodes.
    """
    if edges.kind == "uniform":
        counts = nodes.counts
        segments = UniformGraphs(nodes, counts[counts > 0].tolist(), coarse_only)
        return segments.to_pixels(_segment_rows(pixels, segments, counts, weights))
    # On a GPU one launch for all segments saves more than the memory is worth.
    streams = not torch.is_grad_enabled() and pixels.device.type not in DEVICES
    if streams and len(nodes.pixel):
        return _stream_to_nodes(pixels, nodes, weights, edges, coarse_only)
    query, key = _projections(weights)
    classes = Lengths(nodes.counts.sum(1).tolist())
    # Cast before the gather: half of its memory, and gradients add up in the dtype of autocast.
    [pixels] = in_autocast_dtype(pixels)
    x = pixels_to_nodes(pixels, nodes)
    groups = classes if len(query) > 1 else [len(x)]
    q = class_linear(x, query, groups)
    k = x if key is None else class_linear(x, key, groups)
    lengths = nodes.counts.flatten().tolist()
    gathered = edges.aggregate(q, k, x, lengths, nodes.log_weight)
    z = class_linear(gathered, weights.graph, classes).relu()
    rows = class_linear(z, weights.merge, classes)
    if nodes.log_weight is not None:
        rows = rows * nodes.log_weight.exp().to(rows.dtype)[:, None]
    elif coarse_only and not nodes.disjoint:
        rows = rows * is_coarse_node(nodes)[:, None]
    return nodes_to_pixels(rows, nodes)


def _projections(weights: GraphWeights) -> tuple[Tensor, Tensor | None]:
    """The matrices of queries and keys, (1 or M, C, C); None where the nodes are the keys.

    The similarity is ``x_iᵀ (φ φ'ᵀ) x_j``, so where all classes share φ and φ', one product of
    theirs replaces one of every node with φ'.
    """
    assert weights.phi is not None and weights.phi_prime is not None
    if len(weights.phi) > 1:
        return weights.phi, weights.phi_prime
    with torch.autocast(weights.phi.device.type, enabled=False):  # rounds once, not three times
        return weights.phi @ weights.phi_prime.mT, None


def _stream_to_nodes(
    pixels: Tensor, nodes: NodeSet, weights: GraphWeights, edges: Edges, coarse_only: bool
) -> Tensor:
    """:func:`propagate_to_nodes` without gradients: one segment after the other.

    Beside the features and the result, it holds a few tensors of the largest segment only.
    """
    segments = segments_of(nodes.counts.tolist())
    lengths = [s.length for s in segments]
    projections = _projections(weights)
    factor = None
    if nodes.log_weight is not None:
        factor = nodes.log_weight.exp()
    elif coarse_only and not nodes.disjoint:
        factor = is_coarse_node(nodes)
    nothing = [None] * len(segments)
    log_weights = nothing if nodes.log_weight is None else nodes.log_weight.split(lengths)
    factors = nothing if factor is None else factor.split(lengths)
    total = None
    for (m, _, n), index, log_weight, own_factor in zip(
        segments, nodes.pixel.split(lengths), log_weights, factors, strict=True
    ):
        y = _gathered(pixels.index_select(0, index), projections, edges, m, log_weight)
        y = class_linear(y, weights.graph[m, None], [n]).relu_()
        y = class_linear(y, weights.merge[m, None], [n])
        if own_factor is not None:
            y *= own_factor.to(y.dtype)[:, None]
        if total is None:
            total = y.new_zeros(len(pixels), y.shape[1])
        # No pixel is twice in one segment, so the order of the additions is always the same.
        total.index_add_(0, index, y)
        del y  # before the next segment
    assert total is not None
    return total


def _gathered(
    x: Tensor,
    projections: tuple[Tensor, Tensor | None],
    edges: Edges,
    m: int,
    log_weight: Tensor | None,
) -> Tensor:
    """A_m X of one segment of class m, (n, C) -> (n, C)."""
    query, key = projections
    [x] = in_autocast_dtype(x)
    q = class_linear(x, query[m if len(query) > 1 else 0, None], [len(x)])
    k = x if key is None else class_linear(x, key[m, None], [len(x)])
    return edges.attend(q, k, x, log_weight)


def propagate_to_all(
    pixels: Tensor,
    nodes: NodeSet,
    weights: GraphWeights,
    edges: Edges,
    mean: bool,
    joint: JointOptions | None = None,
) -> Tensor:
    """Propagate with receivers="all".

    Args:
        pixels: (P, C) features.
        nodes: K nodes; ``nodes.class_weight`` holds the weights w_im of the messages.
        weights, edges: of the graphs.
        mean: whether to divide by the number of classes present in the image.
        joint: one softmax over the nodes of all classes; None for one per class.

    Returns:
        (P, C), zero for batch padding.
    """
    images = nodes.counts.shape[1]
    per_image = len(pixels) // max(1, images)
    if nodes.valid is not None:
        # Padding pixels are queries too, although their results are dropped, and may hold NaN.
        pixels = torch.where(nodes.valid[:, None], pixels, 0)
    segments = segments_of(nodes.counts.tolist())
    if joint is not None:
        assert weights.phi is not None and weights.phi_prime is not None
        merged = _joint_messages(pixels, nodes, weights, edges.scale, segments, images, joint)
    elif edges.kind == "uniform":
        means = UniformGraphs(nodes, [s.length for s in segments])
        rows = _segment_rows(pixels, means, nodes.counts, weights)
        merged = segment_messages(
            rows, segments, images=images, pixels=per_image, class_weight=nodes.class_weight
        )
    else:
        assert weights.phi is not None and weights.phi_prime is not None
        classes = Lengths(nodes.counts.sum(1).tolist())
        x = pixels_to_nodes(pixels, nodes)
        merged = attention_messages(
            pixels,
            class_linear(x, weights.phi_prime, classes if len(weights.phi) > 1 else [len(x)]),
            class_linear(x, weights.graph, classes),  # A (X W), so that W sees K rows only
            weights.phi,
            weights.merge,
            segments,
            edges.attend,
            images=images,
            log_weight=nodes.log_weight,
            class_weight=nodes.class_weight,
        )
    if mean:
        present = [max(1, sum(s.image == image for s in segments)) for image in range(images)]
        scale = torch.tensor(present, dtype=merged.dtype, device=merged.device).reciprocal()
        merged = merged * scale.repeat_interleave(per_image)[:, None]
    return merged if nodes.valid is None else torch.where(nodes.valid[:, None], merged, 0)


def _segment_rows(
    pixels: Tensor, segments: UniformGraphs, counts: Tensor, weights: GraphWeights
) -> Tensor:
    """U_m ReLU(A_m X W_m) for uniform edges: (P, C) -> (S, C).

    All rows of A_m are equal, so the matrices multiply one row per segment.
    """
    classes = Lengths((counts > 0).sum(1).tolist())
    # Means in full precision, because features may be half under autocast.
    mean = segments.mean(pixels.float() if pixels.dtype.itemsize < 4 else pixels)
    z = class_linear(mean.to(weights.graph.dtype), weights.graph, classes).relu()
    return class_linear(z, weights.merge, classes)


def _joint_messages(
    pixels: Tensor,
    nodes: NodeSet,
    weights: GraphWeights,
    scale: float,
    segments: list[Segment],
    images: int,
    joint: JointOptions,
) -> Tensor:
    """:func:`joint_messages` in the dtype that :func:`attention_dtype` gives.

    The result has the dtype of the pixels, which is that of the parameters, or under autocast
    float32.
    """
    assert weights.phi is not None and weights.phi_prime is not None
    full = torch.promote_types(pixels.dtype, torch.float32)
    out_dtype = full if torch.is_autocast_enabled(pixels.device.type) else pixels.dtype
    dtype = attention_dtype(pixels, joint.size, joint.heads, joint.distance)
    with torch.autocast(pixels.device.type, enabled=False):
        rows = pixels.to(dtype)
        # All classes share φ and φ'. The backward of an index would fill memory first.
        phi, phi_prime = weights.phi.squeeze(0), weights.phi_prime.squeeze(0)
        matrices = (phi, phi_prime, weights.graph, weights.merge)
        messages = joint_messages(
            rows,
            pixels_to_nodes(rows, nodes),
            nodes.pixel,
            [w.to(dtype) for w in matrices],
            segments,
            size=joint.size,
            images=images,
            heads=joint.heads,
            scale=scale,
            distance=joint.distance,
        )
    return messages.to(out_dtype)


class JointOptions(NamedTuple):
    """Feature map (h, w), number of heads and distance bias of softmax="image"."""

    size: tuple[int, int]
    heads: int
    distance: DistanceBias | None


class GraphWeights(NamedTuple):
    """φ and φ' (1 or M, C, C; None for uniform edges), W and U (M, C, C)."""

    phi: Tensor | None
    phi_prime: Tensor | None
    graph: Tensor
    merge: Tensor


@dataclass(frozen=True)
class Edges:
    """How A_m is computed; the options of :class:`cdgc.CDGCModule`."""

    kind: str
    scale: float
    topk: int
    topk_weights: str

    def aggregate(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], log_weight: Tensor | None
    ) -> Tensor:
        """A_m V from the nodes of every segment to themselves, (K, C) -> (K, C) (Eqs. 2-3)."""
        if self.kind == "similarity":
            return segment_attention(q, k, v, lengths, self.scale, log_weight)
        return segment_topk_attention(q, k, v, lengths, self.scale, self.topk, self.topk_weights)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, log_weight: Tensor | None) -> Tensor:
        """A_m V from any rows q (N, C) to the nodes of one segment, k and v (n, C)."""
        if self.kind == "similarity":
            return attend(q, k, v, self.scale, log_weight)
        return attend_topk(q, k, v, self.scale, self.topk, self.topk_weights)
