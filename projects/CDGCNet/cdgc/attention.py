"""Edges of the class graphs: A_m X without ever storing A_m (Eqs. 2-3).

Rows are packed by segment, a segment being the graph of one class in one image.
Shape shorthand: K rows, S segments, n rows of one segment, C channels.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities of this many pairs are held at once by the top-k edges (64 MiB in float32).
_TOPK_PAIRS = 1 << 24


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


def _as_mask(log_weight: Tensor) -> Tensor:
    """(n,) as what attention adds to every row of its (n, n) similarities, stored once.

    In memory of its own, padded to whole blocks of 8: CUDA's fused kernels read it 16 bytes at a
    time and refuse a row that begins or ends in between.
    """
    n = len(log_weight)
    return F.pad(log_weight, (0, 8 - n % 8))[:n].expand(n, -1)


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
        q, k: (K, C) φ(x) and φ'(x) of the nodes.
        v: (K, D) node features X.
        lengths: S segment lengths that sum to K; zeros are allowed.
        scale: factor on the similarity; the paper has none (1.0).
        log_weight: (K,) added to the similarities to each node as a neighbor: a node of half a
            share counts half. None for hard class maps.

    Returns:
        (K, D). Cost Σ n², memory O(K): rows outside a segment are not even candidates, which is
        what masking with -inf before the softmax means in the dense M x N x N form.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit.
    """
    _check_rows(lengths, q, k, v)
    present = [n for n in lengths if n]
    shares: Iterable[Tensor | None] = itertools.repeat(None, len(present))
    if log_weight is not None:
        if log_weight.shape != q.shape[:1] or log_weight.device != q.device:
            raise ValueError(
                f"expected log_weight ({len(q)},) on {q.device}, got {tuple(log_weight.shape)} on "
                f"{log_weight.device}"
            )
        shares = map(_as_mask, log_weight.to(q.dtype).split(present))
    # split, not slicing: the backward of a slice allocates the full size once per segment.
    parts = (
        [
            F.scaled_dot_product_attention(
                qs[None, None], ks[None, None], vs[None, None], attn_mask=share, scale=scale
            )
            for qs, ks, vs, share in zip(
                q.split(present), k.split(present), v.split(present), shares, strict=True
            )
        ]
        if present
        else []
    )
    # An empty node list keeps a gradient path to its inputs.
    return torch.cat([p[0, 0] for p in parts]) if parts else (q + k).sum(1, keepdim=True) * v


def segment_topk_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Sequence[int],
    scale: float = 1.0,
    topk: int = 64,
    weights: str = "softmax",
) -> Tensor:
    """A X where each node is tied to the ``topk`` most similar nodes of its segment only.

    Args:
        q, k, v, lengths, scale: as in :func:`segment_attention`.
        topk: neighbors per node; all of a smaller segment.
        weights: "softmax" over the chosen similarities, or "equal" (the paper's binary top-k
            matrix, row-normalized), which gives q and k no gradient.

    Raises:
        ValueError: on an unknown ``weights``, topk < 1, or shapes, dtypes or devices that do not
            fit.
    """
    _check_rows(lengths, q, k, v)
    if weights not in ("softmax", "equal"):
        raise ValueError(f"topk weights must be 'softmax' or 'equal', got {weights!r}")
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    parts = []
    for qs, ks, vs in zip(
        q.split(list(lengths)), k.split(list(lengths)), v.split(list(lengths)), strict=True
    ):
        n = len(qs)
        if not n:
            continue
        # The gradient of topk's values scatters back into one block of rows at a time, so
        # neither direction holds more than _TOPK_PAIRS similarities.
        best = [
            (rows @ ks.t()).topk(min(topk, n), dim=1) for rows in qs.split(max(1, _TOPK_PAIRS // n))
        ]
        neighbors = torch.cat([b.indices for b in best])  # (n, topk)
        if weights == "equal":
            parts.append(F.embedding_bag(neighbors, vs, mode="mean"))
        else:
            share = (torch.cat([b.values for b in best]) * scale).softmax(1).to(vs.dtype)
            parts.append(F.embedding_bag(neighbors, vs, per_sample_weights=share, mode="sum"))
    return torch.cat(parts) if parts else (q + k).sum(1, keepdim=True) * v
