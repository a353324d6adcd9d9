"""The weighted sums Σ_{j ∈ S_m} a_ij v_j of each class m under one softmax over all classes.

The plain form stores the weights a_ij of all pixels and nodes. The fused form runs torch's fused
CPU attention once per class and rescales each result by exp(l_m - l), where l_m is the logarithm of
the softmax's denominator over the nodes of class m, and l that over all nodes. In the backward pass
the kernel is given l in place of l_m, so that it recomputes the weights of the joint softmax.
The operators are private to torch, and this use of them is not their documented one, so the fused
form is compared with the plain one before its first use.

Shape shorthand: H heads, N pixels (queries), n nodes sorted by class, n_m of them of class m, S
classes present, E channels of queries and keys, D of values.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cdgc.kernels import LENGTHS, outputs_and_gradients, relative_errors

_flash: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_flash_backward: Any = getattr(
    torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None
)


@functools.cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether the fused form gives the sums and gradients of the stored form, for CPU tensors.

    The first call for each dtype compares them on a small example, which takes milliseconds, and
    logs a warning if they differ. Threads that ask at the same time find the same answer.
    """
    try:
        errors = _errors_of_the_fused_form(dtype)
    except Exception as error:  # whatever a missing or changed operator raises
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    else:
        if all(e <= torch.finfo(dtype).eps ** 0.5 for e in errors):
            return True
        reason = f"relative errors {', '.join(f'{e:.1e}' for e in errors)}"
    logging.getLogger(__name__).warning(
        f"torch {torch.__version__}: its fused attention cannot be used for softmax='image' in "
        f"{dtype} on the CPU ({reason}); the graph stores its attention weights instead, which is "
        "slower on large feature maps"
    )
    return False


def _errors_of_the_fused_form(dtype: torch.dtype) -> list[float]:
    """Relative errors of the sums and of the gradients of q, k and v."""

    def sums(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], fused: bool) -> Tensor:
        return torch.cat(class_sums(q, k, v, [n for n in lengths if n], fused), dim=1)

    g = torch.Generator().manual_seed(0)
    shapes = ((2, 33, 4), (2, sum(LENGTHS), 4), (2, sum(LENGTHS), 5))
    # Whatever the caller's modes are, and on the CPU within `torch.device("meta")`, too.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        inputs = [
            torch.randn(s, generator=g, dtype=torch.float64, device="cpu").to(dtype) for s in shapes
        ]
        found = outputs_and_gradients(functools.partial(sums, fused=True), inputs)
        exact = [t.double() for t in inputs]
        return relative_errors(
            found, outputs_and_gradients(functools.partial(sums, fused=False), exact)
        )


def class_sums(
    q: Tensor, k: Tensor, v: Tensor, counts: Sequence[int], fused: bool
) -> tuple[Tensor, ...]:
    """Weighted sums over the nodes of each class, with a = softmax(q kᵀ) over all nodes.

    Args:
        q: (H, N, E) queries, scaled.
        k: (H, n, E) keys.
        v: (H, n, D) values.
        counts: the positive n_m, in the order of the nodes.
        fused: use fused attention instead of storing H·N·n weights; for CPU tensors of a dtype
            that :func:`can_fuse`.

    Returns:
        One (N, H·D) tensor per class.
    """
    if fused:
        return _FusedClassSums.apply(q, k, v, tuple(counts))
    attention = _Weights.apply(q @ k.transpose(1, 2))  # (H, N, n)
    parts = zip(attention.split(counts, dim=2), v.split(counts, dim=1), strict=True)
    return tuple((part @ own).transpose(0, 1).flatten(1) for part, own in parts)


# Weights below it are 0. No sum of weights feels them, and they or their products with gradients
# would be subnormal numbers, with which a CPU computes up to a hundred times slower. A narrow head
# gives such weights to all nodes in a ring around each pixel.
_SMALLEST = 1e-26


class _Weights(torch.autograd.Function):
    """The softmax over the last dimension, without weights below :data:`_SMALLEST`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        weights = F.threshold(logits.softmax(-1), _SMALLEST, 0.0, inplace=True)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        return torch._softmax_backward_data(grad, weights, -1, weights.dtype)


class _FusedClassSums(torch.autograd.Function):
    """The fused form and its gradients.

    Let y_im be the sum of pixel i over class m, and g_im its gradient. The logit of pixel i and
    node j of class m has the gradient

        a_ij (g_im · v_j - d_i)   with   d_i = Σ_m g_im · y_im.

    torch's kernel computes d_i as the product of an output and its gradient. It receives any d_i
    through one more channel, where values are 0, gradients 1 and outputs d_i.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, counts: tuple[int, ...]
    ) -> tuple[Tensor, ...]:
        ctx.key_channels, ctx.channels = q.shape[2], v.shape[2]
        # The kernel needs as many channels in values as in queries and keys.
        width = max(q.shape[2], v.shape[2] + 1)
        q, k, v = (F.pad(t, (0, width - t.shape[2])) for t in (q, k, v))
        blocks = zip(k.split(counts, dim=1), v.split(counts, dim=1), strict=True)
        found = [_flash(q[None], own_k[None], own_v[None], scale=1.0) for own_k, own_v in blocks]
        log_sums = torch.stack([log_sum[0] for _, log_sum in found])  # (S, H, N)
        total = log_sums.logsumexp(0)
        factors = (log_sums - total).exp_().transpose(1, 2)[..., None]  # (S, N, H, 1)
        out = [
            (o[0].transpose(0, 1)[..., : ctx.channels] * factor).flatten(1)
            for (o, _), factor in zip(found, factors, strict=True)
        ]
        ctx.save_for_backward(q, k, v, total, *out)
        ctx.counts = counts
        return tuple(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, total, *out = ctx.saved_tensors
        heads, rows, width = q.shape
        d = ctx.channels
        products = q.new_zeros(rows, heads)
        for y, grad in zip(out, grads, strict=True):
            products += (y * grad).view(rows, heads, d).sum(2)
        outputs = q.new_zeros(1, rows, heads, width)
        outputs[0, :, :, d] = products
        gradient = q.new_zeros(1, rows, heads, width)
        gradient[..., d] = 1
        outputs, gradient = outputs.transpose(1, 2), gradient.transpose(1, 2)
        grad_q, grad_k, grad_v = torch.zeros_like(q), torch.empty_like(k), torch.empty_like(v)
        splits = [t.split(ctx.counts, dim=1) for t in (k, v, grad_k, grad_v)]
        for grad, own_k, own_v, to_k, to_v in zip(grads, *splits, strict=True):
            gradient[0, :, :, :d] = grad.reshape(rows, heads, d).transpose(0, 1)
            by_q, by_k, by_v = _flash_backward(
                gradient, q[None], own_k[None], own_v[None], outputs, total[None], 0.0, False,
                scale=1.0,
            )  # fmt: skip
            grad_q += by_q[0]
            to_k.copy_(by_k[0])
            to_v.copy_(by_v[0])
        e = ctx.key_channels
        return grad_q[..., :e], grad_k[..., :e], grad_v[..., :d], None
