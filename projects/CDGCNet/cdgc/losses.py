"""Losses on logits of any resolution: cross entropy, and OHEM for the refined ones (Sec. 3.4).

In a distributed training ``reduce`` says what the mean of a loss is taken over:

- "process", the default and the usual practice: the pixels of each process. The average over the
  processes, which distributed training makes of their gradients, is the mean over all pixels only
  if all processes have the same number of valid pixels.
- "global": the pixels of all processes. The average over the processes is then the loss, and the
  average of the gradients the gradient, that one process would have with all their images.
"""

import math

import torch
from torch import Tensor, nn

from cdgc.processes import gather_from_processes, largest_over_processes, world_size
from cdgc.upsampled_loss import upsampled_nll, upsampled_weighted_nll
from cdgc.validation import check_choice, check_device, check_labels, check_shape

REDUCTIONS = ("process", "global")


def _pixel_weights(
    logits: Tensor,
    targets: Tensor,
    ignore_label: int,
    class_weights: Tensor | None,
    check_targets: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the arguments of a loss.

    Returns:
        The mask of valid pixels, the targets with 0 for ignored pixels, and the weight of each
        pixel, (B, H, W) each.
    """
    check_shape("logits", logits, ("B", "M", "h", "w"))
    check_shape("targets", targets, (len(logits), "H", "W"), "logits")
    for name, other in (("targets", targets), ("class_weights", class_weights)):
        if other is not None:
            check_device(name, other.device, logits.device, "logits")
    num_classes = logits.shape[1]
    if check_targets:
        check_labels(targets, num_classes, ignore_label, "target")
    targets = targets.long()
    valid = targets != ignore_label
    safe = targets.where(valid, 0)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if class_weights is None:
        return valid, safe, valid.to(dtype)
    check_shape("class_weights", class_weights, (num_classes,), "logits")
    return valid, safe, class_weights.to(dtype)[safe] * valid


def _mean(
    logits: Tensor, targets: Tensor, weight: Tensor, align_corners: bool, reduce: str
) -> Tensor:
    total = weight.sum()
    if reduce == "global":
        # Summed in float64, in which any number of pixels is exact. Each process divides by the
        # average over the processes, which average the quotients afterwards.
        sums = gather_from_processes(weight.sum(dtype=torch.float64))
        total = (torch.stack(sums).sum() / world_size()).to(weight.dtype)
    # Without any valid pixel this is 0/1: a loss of 0 with a gradient path, never NaN.
    weight = weight / torch.where(total > 0, total, torch.ones_like(total))
    return upsampled_weighted_nll(logits, targets, weight, align_corners)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    align_corners: bool = True,
    reduce: str = "process",
    check_targets: bool = True,
) -> Tensor:
    """Mean cross entropy over the valid pixels, with the logits resized to the targets.

    Args:
        logits: (B, M, h, w) of any size; resized to (H, W) bilinearly.
        targets: (B, H, W) integer classes or ``ignore_label``.
        class_weights: (M,) factors; the mean is then weighted, as in torch's cross entropy.
        align_corners: whether that resize aligns corners.
        reduce: "process" or "global", see the module.
        check_targets: whether to refuse targets that are not classes, for which the host waits for
            the device. Pass False only for targets that :func:`cdgc.check_labels` has accepted.

    Returns:
        Scalar; 0, with a gradient path, if no pixel is valid.

    Raises:
        ValueError: if the shapes do not fit, a target is not a class, or ``reduce`` is unknown.
    """
    check_choice("reduce", reduce, REDUCTIONS)
    _, safe, weight = _pixel_weights(logits, targets, ignore_label, class_weights, check_targets)
    return _mean(logits, safe, weight, align_corners, reduce)


def hard_pixels(
    nll: Tensor, valid: Tensor, thresh: float, min_kept: float, reduce: str = "process"
) -> Tensor:
    """The pixels that online hard example mining keeps.

    Args:
        nll: (B, H, W), the negative log-probability of the true class.
        valid: (B, H, W) bool, False for ignored pixels.
        thresh, min_kept, reduce: see :func:`ohem_cross_entropy`.

    Returns:
        (B, H, W) bool.
    """
    keep = valid & (nll > -math.log(thresh))  # p(true) < thresh
    nll = nll.masked_fill(~valid, -1.0)
    if reduce == "global":
        return (keep | largest_over_processes(nll, min_kept)) & valid
    least = int(min_kept * nll.numel()) if 0 < min_kept < 1 else int(min_kept)
    least = min(least, nll.numel())
    # If more than `least` pixels are hard, these are already among them. topk takes exactly
    # `least`; a threshold would also let in every pixel that ties at a saturated p = 1.
    hardest = nll.flatten().topk(least, sorted=False).indices
    keep = keep.flatten().index_fill(0, hardest, True).view(keep.shape)
    return keep & valid


def ohem_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    thresh: float = 0.7,
    min_kept: float = 100_000,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
    align_corners: bool = True,
    reduce: str = "process",
    check_targets: bool = True,
) -> Tensor:
    """Cross entropy over the hard pixels of a batch, with the logits resized to the targets.

    A valid pixel is kept if the probability of its true class is below ``thresh``. If that leaves
    fewer than ``min_kept`` pixels, the ``min_kept`` valid pixels with the lowest probability are
    kept instead (all of them if there are fewer), as in CCNet and openseg.

    Args:
        logits: (B, M, h, w) of any size; resized to (H, W) bilinearly.
        targets: (B, H, W) integer classes or ``ignore_label``.
        thresh: probability below which a pixel counts as hard.
        min_kept: minimum number of pixels to keep per call (the batch of one GPU), 0 for none; a
            number within (0, 1) is a fraction of B*H*W, for crops smaller than the recipe's. Both
            apply to the batch of all processes together if ``reduce`` is "global".
        class_weights: (M,) factors; the mean is then weighted, as in torch's cross entropy.
            They do not affect which pixels are kept.
        align_corners: whether that resize aligns corners.
        reduce: "process" or "global", see the module. "global" selects the hardest pixels of all
            processes exactly; which of several equally hard pixels it takes depends on nothing
            but their order in the batch.
        check_targets: as in :func:`cross_entropy`.

    Returns:
        Scalar mean over the kept pixels; 0, with a gradient path, if no pixel is valid.

    Raises:
        ValueError: if the shapes do not fit, a target is not a class, ``thresh`` or
            ``min_kept`` is out of range, or ``reduce`` is unknown.
    """
    check_choice("reduce", reduce, REDUCTIONS)
    if not 0.0 < thresh <= 1.0:
        raise ValueError(f"thresh must be within (0, 1], got {thresh}")
    if min_kept < 0 or (min_kept > 1 and min_kept != int(min_kept)):
        raise ValueError(
            f"min_kept must be a pixel count or a fraction within (0, 1), got {min_kept}"
        )
    valid, safe, weight = _pixel_weights(
        logits, targets, ignore_label, class_weights, check_targets
    )
    nll = upsampled_nll(logits, safe, align_corners)
    keep = hard_pixels(nll, valid, thresh, min_kept, reduce)
    return _mean(logits, safe, weight * keep, align_corners, reduce)


class OhemCrossEntropyLoss(nn.Module):
    """:func:`ohem_cross_entropy` as a module."""

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        thresh: float = 0.7,
        min_kept: float = 100_000,
        ignore_label: int = 255,
        class_weights: Tensor | None = None,
        align_corners: bool = True,
        reduce: str = "process",
    ):
        super().__init__()
        check_choice("reduce", reduce, REDUCTIONS)
        self.thresh = thresh
        self.min_kept = min_kept
        self.ignore_label = ignore_label
        self.align_corners = align_corners
        self.reduce = reduce
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ohem_cross_entropy(
            logits,
            targets,
            thresh=self.thresh,
            min_kept=self.min_kept,
            ignore_label=self.ignore_label,
            class_weights=self.class_weights,
            align_corners=self.align_corners,
            reduce=self.reduce,
        )
