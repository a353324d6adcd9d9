"""Online hard example mining for the refined prediction (Sec. 3.4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nodes import check_labels


def ohem_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    thresh: float = 0.7,
    min_kept: float = 100_000,
    ignore_label: int = 255,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross entropy over the hard pixels of a batch.

    A valid pixel is kept if the probability of its true class is below ``thresh``. If fewer than
    ``min_kept`` are, the ``min_kept`` pixels with the lowest such probability are kept (all of
    them if there are fewer), as in CCNet and openseg.

    Args:
        logits: (B, M, H, W).
        targets: (B, H, W) integer classes or ``ignore_label``.
        thresh: probability below which a pixel counts as hard.
        min_kept: pixels kept at least per call (one GPU's batch), 0 for no minimum; a number
            within (0, 1) is a share of B*H*W, for crops smaller than the recipe's.
        class_weights: (M,) factors; the mean is then weighted, as torch's cross entropy does.

    Returns:
        Scalar mean over the kept pixels; 0 with a gradient path if no pixel is valid.

    Raises:
        ValueError: if the shapes differ, a target is no class, or ``thresh`` or ``min_kept`` is
            out of range.
    """
    if logits.dim() != 4 or targets.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"expected logits (B, M, H, W) and targets (B, H, W), got {tuple(logits.shape)} and "
            f"{tuple(targets.shape)}"
        )
    if not 0.0 < thresh <= 1.0:
        raise ValueError(f"thresh must be within (0, 1], got {thresh}")
    if min_kept < 0 or (min_kept > 1 and min_kept != int(min_kept)):
        raise ValueError(f"min_kept must be a pixel count or a share within (0, 1), got {min_kept}")
    num_classes = logits.shape[1]
    if class_weights is not None:
        if class_weights.shape != (num_classes,):
            raise ValueError(
                f"class_weights must have one number for each of the {num_classes} classes, got "
                f"shape {tuple(class_weights.shape)}"
            )
        class_weights = class_weights.to(logits.dtype)
    check_labels(targets, num_classes, ignore_label, "target")
    targets = targets.long()
    losses = F.cross_entropy(
        logits, targets, weight=class_weights, ignore_index=ignore_label, reduction="none"
    )
    valid = targets != ignore_label
    with torch.no_grad():
        # The true class's probability is exp(-CE); class weights must not distort it.
        nll = (
            losses
            if class_weights is None
            else F.cross_entropy(logits, targets, ignore_index=ignore_label, reduction="none")
        )
        keep = valid & (nll > -math.log(thresh))  # p(true) < thresh
        least = int(min_kept * targets.numel()) if 0 < min_kept < 1 else int(min_kept)
        least = min(least, targets.numel())
        # Where more than `least` pixels are hard these are among them. topk takes exactly
        # `least`: a threshold would let in every pixel that ties at a saturated p = 1.
        hardest = nll.masked_fill(~valid, -1.0).flatten().topk(least, sorted=False).indices
        keep.view(-1)[hardest] = True
        keep &= valid
    weight = keep.to(losses.dtype)
    if class_weights is not None:
        weight = weight * class_weights[targets.where(valid, 0)]
    # losses already hold the class weights; the divisor must hold them too. A batch without a
    # valid pixel divides zero by one.
    total = (losses * keep).sum()
    mass = weight.sum()
    return total / torch.where(mass > 0, mass, torch.ones_like(mass))


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
    ):
        super().__init__()
        self.thresh = thresh
        self.min_kept = min_kept
        self.ignore_label = ignore_label
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ohem_cross_entropy(
            logits,
            targets,
            thresh=self.thresh,
            min_kept=self.min_kept,
            ignore_label=self.ignore_label,
            class_weights=self.class_weights,
        )
