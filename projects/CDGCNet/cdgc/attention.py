"""Edges of the class graphs: A_m X without ever storing A_m (Eqs. 2-3).

Rows are packed by segment; a segment is the graph of one class in one image.
Shape shorthand: K rows, S segments, n rows of one segment, C channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc.kernels import KernelChoice, in_autocast_dtype, segment_ends
from cdgc.validation import check_choice

TOPK_WEIGHTS = ("softmax", "equal")
# Pairs whose similarities the top-k edges hold at once (64 MiB in float32).
_TOPK_PAIRS = 1 << 24


def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    scale: float = 1.0,
    log_weight: Tensor | None = None,
) -> Tensor:
    """A X with A = softmax over each segment of ``scale * q kᵀ`` (Eqs. 2-3).

    Args:
        q, k: (K, C), queries and keys of the nodes, whose products are the similarities.
        v: (K, D), the node features X.
        lengths: S segment lengths that sum to K; zeros are allowed.
        scale: factor on the similarity; the paper has none (1.0).
        log_weight: (K,), added to the similarities with each node as the neighbor, so that a node
            with a membership of one half counts half. None for hard class maps.

    Returns:
        (K, D). Costs Σ n² operations and O(K) memory. Rows outside a segment are never candidates,
        which is what masking with -inf before the softmax does in the dense M x N x N form.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
    """
    _check_rows(lengths, q, k, v)
    if log_weight is not None and (
        log_weight.shape != q.shape[:1] or log_weight.device != q.device
    ):
        raise ValueError(
            f"expected log_weight ({len(q)},) on {q.device}, got {tuple(log_weight.shape)} on "
            f"{log_weight.device}"
        )
    if not any(lengths):
        return _empty(q, k, v)
    if log_weight is not None:
        return _attention_loop(q, k, v, lengths, scale, log_weight)
    q, k, v = in_autocast_dtype(q, k, v)
    return _segment_kernel(q, k, v)(q, k, v, lengths, scale)


def segment_topk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    scale: float = 1.0,
    topk: int = 64,
    weights: str = "softmax",
) -> Tensor:
    """A X where each node is connected to the ``topk`` most similar nodes of its segment only.

    Args:
        q, k, v, lengths, scale: as in :func:`segment_attention`.
        topk: neighbors per node; all nodes of a smaller segment.
        weights: "softmax" over the chosen similarities, or "equal" (the paper's binary top-k
            matrix, row-normalized), which gives q and k no gradient.

    Returns:
        (K, D).

    Raises:
        ValueError: if ``weights`` is unknown, topk < 1, or shapes, dtypes or devices do not fit.
    """
    _check_rows(lengths, q, k, v)
    check_choice("topk weights", weights, TOPK_WEIGHTS)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    present = [n for n in lengths if n]
    if not present:
        return _empty(q, k, v)
    blocks = zip(q.split(present), k.split(present), v.split(present), strict=True)
    return torch.cat([attend_topk(*block, scale, topk, weights) for block in blocks])


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, log_weight: Tensor | None = None
) -> Tensor:
    """Attention from any rows to the nodes of one segment: q (N, C), k (n, C), v (n, D) -> (N, D).

    ``scale`` and ``log_weight`` (n,) are those of :func:`segment_attention`.
    """
    mask = None if log_weight is None else _as_mask(log_weight.to(q.dtype), len(q))
    return F.scaled_dot_product_attention(
        q[None, None], k[None, None], v[None, None], attn_mask=mask, scale=scale
    )[0, 0]


def attend_topk(q: Tensor, k: Tensor, v: Tensor, scale: float, topk: int, weights: str) -> Tensor:
    """Attention from any rows to the ``topk`` most similar nodes of one segment.

    The shapes are those of :func:`attend`, the options those of :func:`segment_topk_attention`.
    """
    n = len(k)
    # The gradient of topk's values is scattered into one block of rows at a time, so that neither
    # direction holds more than _TOPK_PAIRS similarities.
    blocks = [_most_similar(rows, k, min(topk, n)) for rows in q.split(max(1, _TOPK_PAIRS // n))]
    neighbors = torch.cat([indices for _, indices in blocks])  # (N, topk)
    if weights == "equal":
        return F.embedding_bag(neighbors, v, mode="mean")
    similarity = torch.cat([values for values, _ in blocks])
    a = (similarity * scale).softmax(1).to(v.dtype)
    return F.embedding_bag(neighbors, v, per_sample_weights=a, mode="sum")


def _attention_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    scale: float = 1.0,
    log_weight: Tensor | None = None,
) -> Tensor:
    """:func:`segment_attention` segment by segment."""
    present = [n for n in lengths if n]
    weights: Sequence[Tensor | None] = [None] * len(present)
    if log_weight is not None:
        weights = log_weight.split(present)
    # split instead of slicing: the backward of a slice allocates the full size once per segment.
    blocks = zip(q.split(present), k.split(present), v.split(present), weights, strict=True)
    return torch.cat([attend(qs, ks, vs, scale, w) for qs, ks, vs, w in blocks])


def _varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float = 1.0
) -> Tensor:
    """:func:`segment_attention` in one launch of flash attention, in half precision only."""
    from torch.nn.attention.varlen import varlen_attn  # since torch 2.10

    present = [n for n in lengths if n]
    ends, longest = segment_ends(present, q.device, start=True), max(present)
    q, k, v = (t[:, None].contiguous() for t in (q, k, v))  # one head
    out = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale)
    assert isinstance(out, Tensor)  # a tuple only where more is asked for
    return out.squeeze(1)  # the backward of an index would fill memory first


def _jagged_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float = 1.0
) -> Tensor:
    """:func:`segment_attention` as one call on nested tensors, in any precision."""
    if torch.is_inference_mode_enabled():  # nested tensors cannot hold inference tensors
        with torch.inference_mode(False), torch.no_grad():
            return _jagged_attention(q.clone(), k.clone(), v.clone(), lengths, scale)
    present = [n for n in lengths if n]
    ends = segment_ends(present, q.device, start=True)
    shortest, longest = min(present), max(present)

    def nested(rows: Tensor) -> Tensor:  # with its bounds, or torch would ask the device for them
        return torch.nested.nested_tensor_from_jagged(
            rows[:, None].contiguous(), ends, min_seqlen=shortest, max_seqlen=longest
        ).transpose(1, 2)

    out = F.scaled_dot_product_attention(nested(q), nested(k), nested(v), scale=scale)
    return out.transpose(1, 2).values().squeeze(1)


def _example_rows(lengths: Sequence[int], channels: Sequence[int]) -> list[Tensor]:
    """Queries and keys whose similarities are O(1), and values."""
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(sum(lengths), c, generator=g, dtype=torch.float64) for c in channels]
    return [rows[0] * channels[0] ** -0.25, rows[1] * channels[0] ** -0.25, rows[2]]


_segment_kernel = KernelChoice(
    "Segment attention",
    _attention_loop,
    {"varlen_attn": _varlen_attention, "nested tensors": _jagged_attention},
    _example_rows,
)


def _check_rows(lengths: Sequence[int], q: Tensor, k: Tensor, v: Tensor) -> None:
    total = sum(lengths)
    for name, rows in (("q", q), ("k", k), ("v", v)):
        if rows.dim() != 2 or rows.shape[0] != total:
            raise ValueError(
                f"expected {name} (K, C) with K = sum of lengths = {total}, got {tuple(rows.shape)}"
            )
        if rows.device != q.device or rows.dtype != q.dtype:
            raise ValueError(
                f"{name} is {rows.dtype} on {rows.device}, q {q.dtype} on {q.device}; all must be "
                "of one dtype on one device"
            )


def _empty(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The result without any rows, with a gradient path to the inputs."""
    return (q + k).sum(1, keepdim=True) * v


def _as_mask(log_weight: Tensor, rows: int) -> Tensor:
    """Expand (n,) weights to the (rows, n) attention mask with equal rows, which are stored once.

    The row is padded to a multiple of 8 numbers in memory of its own: CUDA's fused kernels read 16
    bytes at a time and refuse a row that begins or ends in between.
    """
    n = len(log_weight)
    return F.pad(log_weight, (0, 8 - n % 8))[:n].expand(rows, -1)


def _most_similar(q: Tensor, k: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """The ``topk`` largest entries of each row of ``q kᵀ``, and their columns.

    At least in single precision, as fused attention computes similarities: a sum over C channels
    overflows in half precision long before its terms do.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        values, indices = (q.to(dtype) @ k.to(dtype).t()).topk(topk, dim=1)
    return values, indices
