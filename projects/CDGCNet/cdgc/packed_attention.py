"""The sums of :mod:`cdgc.class_sums` for all classes and images in one launch, on a GPU.

torch's fused attention for sequences of different lengths takes each class of each image as one
sequence: its keys are the nodes of the class, its queries all pixels of the image, so that the
pixels are repeated for each class. Each result is rescaled by exp(l_m - l), and the backward pass
is given l in place of l_m, as in :mod:`cdgc.class_sums`, which explains both. The operators are
private to torch and compared with the stored form before their first use.

Shape shorthand: B images of N pixels, S segments (the non-empty (class, image) pairs, sorted by
class, then image), K nodes in the order of the segments, H heads, E channels of queries and keys,
D of values, W of both in the kernels, C = H * D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc.class_sums import class_sums
from cdgc.kernels import KernelChoice, segment_ends, to_device
from cdgc.messages import Segment

# The kernels read 16 bytes at a time: 8 numbers in half precision.
_ALIGNMENT = 8

_flash: Any = getattr(torch.ops.aten, "_flash_attention_forward", None)
_flash_backward: Any = getattr(torch.ops.aten, "_flash_attention_backward", None)
_efficient: Any = getattr(torch.ops.aten, "_efficient_attention_forward", None)
_efficient_backward: Any = getattr(torch.ops.aten, "_efficient_attention_backward", None)


def layout_of(segments: Sequence[Segment], images: int, device: torch.device) -> Layout:
    """The layout of one or more segments. The host does not wait for the device."""
    own = [[s for s, segment in enumerate(segments) if segment.image == b] for b in range(images)]
    most = max(len(indices) for indices in own)
    filled = [indices + [len(segments)] * (most - len(indices)) for indices in own]
    numbers = to_device([*(s.image for s in segments), *(s for row in filled for s in row)], device)
    image, of_image = numbers.split([len(segments), images * most])
    member = image == torch.arange(images, device=device)[:, None]
    lengths = [segment.length for segment in segments]
    return Layout(
        image,
        member.float(),
        of_image.view(images, most),
        segment_ends(lengths, device, start=True),
        max(lengths),
    )


def packed_kernel(
    device: torch.device, dtype: torch.dtype, key_channels: int, channels: int
) -> PackedKernel | None:
    """The kernel that :func:`packed_sums` can use for E and D channels, if there is one.

    There is none in float32, where the stored form is faster on GPUs (benchmarks/NOTES.md).
    """
    if dtype == torch.float32:
        return None
    kernel = _choice.kernel(device, dtype, (key_channels, key_channels, channels))
    return kernel if isinstance(kernel, PackedKernel) else None


def packed_sums(q: Tensor, k: Tensor, v: Tensor, layout: Layout, kernel: PackedKernel) -> Tensor:
    """Σ_{j ∈ S_m} a_ij v_j of every segment and pixel, with one softmax over all nodes of an image.

    Args:
        q: (B, N, H, E) queries, scaled.
        k: (K, H, E) keys.
        v: (K, H, D) values.
        layout: of the segments.
        kernel: see :func:`packed_kernel`.

    Returns:
        (S, N, C).
    """
    return _PackedSums.apply(q, k, v, layout, kernel)


def _bounds(layout: Layout, queries: int) -> tuple[Tensor, Tensor, int, int]:
    """Where the queries and the keys of the sequences end, and the longest of each."""
    size, device = len(layout.ends), layout.ends.device
    query_ends = torch.arange(0, size * queries, queries, dtype=torch.int32, device=device)
    return query_ends, layout.ends, queries, layout.longest


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, bounds: tuple) -> tuple[Tensor, Tensor]:
    out, logs, *_ = _flash(q, k, v, *bounds, 0.0, False, False, scale=1.0)
    return out, logs


def _flash_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, bounds: tuple
) -> Sequence[Tensor]:
    unused = q.new_empty(2, dtype=torch.uint64)  # the random state of dropout
    return _flash_backward(grad, q, k, v, out, logs, *bounds, 0.0, False, unused, unused, scale=1.0)


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, bounds: tuple) -> tuple[Tensor, Tensor]:
    out, logs, *_ = _efficient(q[None], k[None], v[None], None, *bounds, 0.0, 0, True, scale=1.0)
    return out[0], logs


def _efficient_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logs: Tensor, bounds: tuple
) -> Sequence[Tensor]:
    unused = q.new_empty((), dtype=torch.int64)  # the random state of dropout
    found = _efficient_backward(
        grad[None], q[None], k[None], v[None], None, out[None], *bounds, logs, 0.0,
        unused, unused, 0, False, scale=1.0,
    )  # fmt: skip
    return [gradient[0] for gradient in found[:3]]


def _to_common(logs: Tensor, queries: int) -> Tensor:
    """Logarithms in an operator's own layout -> (S, H, N)."""
    if logs.dim() == 2:  # (H, S·N)
        return logs.unflatten(1, (-1, queries)).transpose(0, 1)
    return logs[:, :, :queries]  # N was rounded up to whole blocks


def _to_own(logs: Tensor, shape: torch.Size) -> Tensor:
    """(S, H, N) -> an operator's own layout, which has this shape."""
    if len(shape) == 2:
        return logs.transpose(0, 1).reshape(shape)
    return F.pad(logs, (0, shape[2] - logs.shape[2]), value=torch.inf).contiguous()


def _stored(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """:func:`packed_sums` for one image with stored attention weights."""
    q, k, v = (t.transpose(-2, -3) for t in (q[0], k, v))  # heads first
    return torch.stack(class_sums(q, k, v, [n for n in lengths if n], fused=False))


def _example(lengths: Sequence[int], channels: Sequence[int]) -> list[Tensor]:
    """Two heads, one image of 33 pixels; logits of O(1)."""
    g = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(*size, 2, c, generator=g, dtype=torch.float64)
        for size, c in zip(((1, 33), (sum(lengths),), (sum(lengths),)), channels, strict=True)
    ]
    return [rows[0] * channels[0] ** -0.25, rows[1] * channels[0] ** -0.25, rows[2]]


class Layout(NamedTuple):
    """Which segment belongs to which image, on the device of the tensors."""

    image: Tensor  # (S,) int64
    member: Tensor  # (B, S), 1 where a segment belongs to an image, else 0
    of_image: Tensor  # (B, most segments of an image) int64, filled up with S
    ends: Tensor  # (S + 1,) int32, where the nodes of the segments begin and end
    longest: int  # nodes of the largest segment


@dataclass(frozen=True)
class PackedKernel:
    """Fused attention of S sequences with N queries each.

    Rows are (S·N, H, W) for queries and (K, H, W) for keys and values. Both functions also take
    the ``bounds`` of the sequences, from :func:`_bounds`. The logarithms of the denominators have
    the operator's own layout; :func:`_to_common` and :func:`_to_own` convert them.
    """

    # (q, k, v, bounds) -> the outputs (S·N, H, W) and the logarithms
    forward: Callable[..., tuple[Tensor, Tensor]]
    # (gradient, q, k, v, outputs, logarithms, bounds) -> the gradients of q, k and v
    backward: Callable[..., Sequence[Tensor]]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
        """:func:`packed_sums` for one image, as :class:`cdgc.kernels.KernelChoice` compares it."""
        segments = [Segment(m, 0, n) for m, n in enumerate(lengths) if n]
        return packed_sums(q, k, v, layout_of(segments, 1, q.device), self)


class _PackedSums(torch.autograd.Function):
    """The sums and their gradients, see the top of this module."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, kernel: PackedKernel
    ) -> Tensor:
        _, queries, heads, ctx.key_channels = q.shape
        d = v.shape[2]
        # The kernels need as many channels in values as in queries and keys, and one more for d_i.
        width = max(ctx.key_channels, d + 1)
        width += -width % _ALIGNMENT
        q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
        rows = q.index_select(0, layout.image).flatten(0, 1)
        bounds = _bounds(layout, queries)
        out, logs = kernel.forward(rows, k, v, bounds)
        ctx.logs_shape = logs.shape
        logs = _to_common(logs, queries)
        nothing = logs.new_full((1, heads, queries), -torch.inf)
        total = torch.cat([logs, nothing])[layout.of_image].logsumexp(1)  # (B, H, N)
        factor = (logs - total.index_select(0, layout.image)).exp_().transpose(1, 2)
        y = out.view(-1, queries, heads, width)[..., :d] * factor[..., None].to(out.dtype)
        y = y.flatten(2)
        ctx.save_for_backward(q, k, v, total, y)
        ctx.layout, ctx.kernel, ctx.bounds = layout, kernel, bounds
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, total, y = ctx.saved_tensors
        layout = ctx.layout
        _, queries, heads, width = q.shape
        d = y.shape[2] // heads
        products = (y * grad).view(-1, queries, heads, d).sum(3, dtype=total.dtype)
        products = layout.member.to(total.dtype) @ products.flatten(1)  # d_i, (B, N·H)
        products = products.index_select(0, layout.image).view(-1, queries, heads)
        outputs, gradient = q.new_zeros(2, *products.shape, width).unbind()
        outputs[..., d] = products.to(q.dtype)
        gradient[..., :d] = grad.view(-1, queries, heads, d)
        gradient[..., d] = 1
        logs = _to_own(total.index_select(0, layout.image), ctx.logs_shape)
        rows = (t.flatten(0, 1) for t in (gradient, q.index_select(0, layout.image)))
        by_q, by_k, by_v = ctx.kernel.backward(*rows, k, v, outputs.flatten(0, 1), logs, ctx.bounds)
        # A product with 0 and 1 adds the classes of an image in the same order every time.
        by_q = layout.member.to(by_q.dtype) @ by_q.reshape(len(layout.image), -1)
        e = ctx.key_channels
        return by_q.view_as(q)[..., :e], by_k[..., :e], by_v[..., :d], None, None


_choice = KernelChoice(
    "Joint attention",
    _stored,
    {
        "flash attention": PackedKernel(_flash_forward, _flash_gradients),
        # for GPUs before Ampere, and for heads that are too wide for flash attention
        "memory-efficient attention": PackedKernel(_efficient_forward, _efficient_gradients),
    },
    _example,
    "stored weights",
)
