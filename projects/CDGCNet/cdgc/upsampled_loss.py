"""Cross entropy of logits resized to the targets, without ever storing the resized logits.

Shape shorthand: logits (B, M, h, w), targets (B, H, W). The plain formulation stores full-size
logits and gradients of M*H*W values several times over. Here one band of rows, or several small
images, are processed at a time in the cache, and only tensors of the size of ``logits`` or
``targets`` are kept.

The resize is a product of matrices, in which one infinite logit would reach others as NaN; an axis
that keeps its size has none.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cdgc.interpolation import resize_matrix

# Values at a time, sized to fit a CPU core's cache. A GPU prefers fewer, larger launches.
_BAND_VALUES = {"cpu": 1 << 19, "gpu": 1 << 26}


@lru_cache(maxsize=8)
def _kept_matrix(
    in_size: int, out_size: int, align_corners: bool, dtype: torch.dtype, pinned: bool
) -> Tensor:
    """:func:`resize_matrix` on the CPU; not to be written to."""
    with torch.inference_mode(False):
        like = torch.empty(0, dtype=dtype, device="cpu")
        matrix = resize_matrix(in_size, out_size, align_corners, like)
        return matrix.pin_memory() if pinned else matrix


def _sent_matrix(in_size: int, out_size: int, align_corners: bool, like: Tensor) -> Tensor:
    """:func:`resize_matrix` on the device of ``like``.

    A GPU would take fifteen launches to make it and takes one to get it.
    """
    # Compilers ignore caches, and tensors without numbers must not get into one.
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return resize_matrix(in_size, out_size, align_corners, like)
    pinned = like.device.type == "cuda"
    kept = _kept_matrix(in_size, out_size, align_corners, like.dtype, pinned)
    return kept.to(like.device, non_blocking=True)


def _source_rows(rows: slice, in_size: int, out_size: int, align_corners: bool) -> tuple[int, int]:
    """Bounds of the source rows that contribute to some resized rows, with one row to spare."""
    if align_corners:
        step = (in_size - 1) / max(out_size - 1, 1)
        first, last = rows.start * step, (rows.stop - 1) * step
    else:
        step = in_size / out_size
        first, last = (rows.start + 0.5) * step - 0.5, (rows.stop - 0.5) * step - 0.5
    return max(0, int(first) - 1), min(in_size, int(last) + 3)


def _scan(
    logits: Tensor, targets: Tensor, align_corners: bool, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Process the resized logits once, one band of rows or several whole images at a time.

    Args:
        logits: (B, M, h, w) float32 or float64.
        targets: (B, H, W) int64, all within [0, M).
        weight: (B, H, W), a factor for the loss of each pixel, or None for no gradient.

    Returns:
        -log p(target) (B, H, W), and the gradient (B, M, h, w) of Σ weight * -log p(target).
    """
    logits = logits.contiguous()  # channels_last would be copied in every product
    classes, h, w = logits.shape[1:]
    height, width = targets.shape[1:]
    weight = None if weight is None else weight.to(logits.dtype)
    vertical, horizontal = (
        _sent_matrix(*sizes, align_corners, logits) for sizes in ((h, height), (w, width))
    )
    values = _BAND_VALUES["cpu" if logits.device.type == "cpu" else "gpu"]
    together = max(1, values // max(1, classes * height * width))  # whole images
    band = height if together > 1 else max(1, values // (classes * width))
    nll = logits.new_empty(targets.shape)
    grad = None if weight is None else torch.empty_like(logits)
    for start in range(0, len(logits), together):
        images = slice(start, start + together)
        x = logits[images].flatten(0, 1)
        wide = x @ horizontal.t() if w != width else x  # (images * M, h, W)
        # One band alone fills it, several add to it.
        empty = torch.empty_like if band >= height else torch.zeros_like
        wide_grad = empty(wide if weight is not None else wide[:0])
        for begin in range(0, height, band):
            rows = slice(begin, min(begin + band, height))
            if h != height:
                first, last = _source_rows(rows, h, height, align_corners)
                taps = vertical[rows, first:last]
                x = taps @ wide[:, first:last]  # the resized logits
            else:
                x = wide[:, rows].clone()
            x = x.unflatten(0, (-1, classes))  # (images, M, rows, W)
            target = targets[images, None, rows]
            x -= x.amax(dim=1, keepdim=True)
            at_target = x.gather(1, target)[:, 0]
            total = x.exp_().sum(dim=1, keepdim=True)
            torch.sub(total[:, 0].log(), at_target, out=nll[images, rows])
            if weight is not None:
                band_weight = weight[images, None, rows]
                x *= band_weight / total  # weight * p
                x.scatter_add_(1, target, -band_weight)
                x = x.flatten(0, 1)
                if band >= height and h != height:
                    torch.matmul(vertical.t(), x, out=wide_grad)
                elif h != height:
                    wide_grad[:, first:last].add_(taps.t() @ x)
                else:
                    wide_grad[:, rows] = x
        if grad is not None:
            found = wide_grad @ horizontal if w != width else wide_grad
            grad[images] = found.unflatten(0, (-1, classes))
    return nll, grad


def _in_full_precision(
    logits: Tensor, targets: Tensor, align_corners: bool, weight: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """:func:`_scan` in float32 (float64 for float64), regardless of autocast."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    with torch.autocast(logits.device.type, enabled=False):
        return _scan(logits, targets, align_corners, weight)


class _WeightedSum(torch.autograd.Function):
    """Σ weight * -log p(target); the forward pass computes the gradient in the same scan."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, weight: Tensor, align_corners: bool
    ) -> Tensor:
        needed = ctx.needs_input_grad[0]
        nll, grad = _in_full_precision(logits, targets, align_corners, weight if needed else None)
        if grad is not None:
            ctx.save_for_backward(grad)
            ctx.dtype = logits.dtype
        # Pixels of weight 0 may have an infinite loss, and 0 * inf would be NaN.
        return (nll * weight).where(weight != 0, 0).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        # Rounded after the product: a mean over many pixels has gradients below what float16 can
        # hold, until the factor of a loss scale is on them.
        return (ctx.saved_tensors[0] * grad).to(ctx.dtype), None, None, None


def upsampled_nll(logits: Tensor, targets: Tensor, align_corners: bool) -> Tensor:
    """The negative log-probability of every pixel's target, without gradient.

    Args:
        logits: (B, M, h, w).
        targets: (B, H, W) int64 within [0, M).
        align_corners: whether the resize to (H, W) aligns corners.

    Returns:
        (B, H, W), float32 unless ``logits`` are float64.
    """
    return _in_full_precision(logits.detach(), targets, align_corners, None)[0]


def upsampled_weighted_nll(
    logits: Tensor, targets: Tensor, weight: Tensor, align_corners: bool
) -> Tensor:
    """Σ weight * -log p(target) over all pixels, with a gradient for ``logits``.

    Args:
        logits: (B, M, h, w).
        targets: (B, H, W) int64 within [0, M).
        weight: (B, H, W); 0 excludes a pixel.
        align_corners: whether the resize to (H, W) aligns corners.

    Returns:
        Scalar, float32 unless ``logits`` are float64.
    """
    return _WeightedSum.apply(logits, targets, weight, align_corners)
