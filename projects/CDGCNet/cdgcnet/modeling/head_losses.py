"""The loss terms of the head (Eq. 5)."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from cdgc import REDUCTIONS, check_labels, cross_entropy, ohem_cross_entropy
from cdgc.validation import check_choice
from cdgcnet.modeling.predictions import HeadOutput


class HeadLosses(nn.Module):
    """Weighted losses of the coarse, refined and auxiliary logits (Eq. 5).

    ``alpha * CE(coarse) + beta * OHEM(refined) + gamma * CE(auxiliary)``; the refined term can be a
    plain cross entropy as well. A network without refinement has the baseline loss of its only
    prediction instead of the first two terms.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        ignore_label: int = 255,
        class_weights: Sequence[float] = (),
        align_corners: bool = True,
        ohem_thresh: float = 0.7,
        ohem_min_kept: float = 100_000,
        coarse_weight: float = 0.6,
        refined_weight: float = 0.7,
        refined: str = "ohem",
        aux_weight: float = 0.4,
        baseline_weight: float = 1.0,
        baseline: str = "ce",
        reduce: str = "process",
    ):
        """
        Args:
            ignore_label: target value of pixels that contribute no loss.
            class_weights: M factors that apply to all terms, or empty.
            align_corners: how logits are resized to the targets.
            ohem_thresh, ohem_min_kept: see :func:`cdgc.ohem_cross_entropy`.
            coarse_weight, refined_weight, aux_weight: alpha, beta and gamma of Eq. 5.
            refined: the loss of the refined logits, "ohem" or "ce" (cross entropy).
            baseline_weight: weight of the baseline loss.
            baseline: the baseline loss, "ce" or "ohem".
            reduce: what the means are taken over, the pixels of each "process" or "global"; see
                :mod:`cdgc.losses`.

        Raises:
            ValueError: for any other ``refined``, ``baseline`` or ``reduce``.
        """
        super().__init__()
        check_choice("refined", refined, ("ohem", "ce"))
        check_choice("baseline", baseline, ("ce", "ohem"))
        check_choice("reduce", reduce, REDUCTIONS)
        self.ignore_label = ignore_label
        self.align_corners = align_corners
        self.ohem_thresh = ohem_thresh
        self.ohem_min_kept = ohem_min_kept
        self.coarse_weight = coarse_weight
        self.refined_weight = refined_weight
        self.refined = refined
        self.aux_weight = aux_weight
        self.baseline_weight = baseline_weight
        self.baseline = baseline
        self.reduce = reduce
        weights = torch.tensor(class_weights, dtype=torch.float) if len(class_weights) else None
        # Not saved in checkpoints: prediction does not need the class weights.
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "HeadLosses":
        """The losses that ``cfg.MODEL.CDGC.LOSS`` describes."""
        loss = cfg.MODEL.CDGC.LOSS
        return cls(
            ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            class_weights=loss.CLASS_WEIGHTS,
            align_corners=cfg.MODEL.CDGC.ALIGN_CORNERS,
            ohem_thresh=loss.OHEM_THRESH,
            ohem_min_kept=loss.OHEM_MIN_KEPT,
            coarse_weight=loss.COARSE_WEIGHT,
            refined_weight=loss.REFINED_WEIGHT,
            refined=loss.REFINED,
            aux_weight=loss.AUX_WEIGHT,
            baseline_weight=loss.BASELINE_WEIGHT,
            baseline=loss.BASELINE,
            reduce=loss.REDUCE,
        )

    def _loss(self, kind: str, logits: Tensor, targets: Tensor) -> Tensor:
        return (self._ohem if kind == "ohem" else self._cross_entropy)(logits, targets)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(
            logits,
            targets,
            ignore_label=self.ignore_label,
            class_weights=self.class_weights,
            align_corners=self.align_corners,
            reduce=self.reduce,
            check_targets=False,
        )

    def _ohem(self, logits: Tensor, targets: Tensor) -> Tensor:
        return ohem_cross_entropy(
            logits,
            targets,
            thresh=self.ohem_thresh,
            min_kept=self.ohem_min_kept,
            ignore_label=self.ignore_label,
            class_weights=self.class_weights,
            align_corners=self.align_corners,
            reduce=self.reduce,
            check_targets=False,
        )

    def forward(self, output: HeadOutput, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms by name.

        Logits are resized to the size of the targets rather than by a factor: 97 * 8 is 776, not
        769.

        Args:
            output: logits of the head.
            targets: (B, H, W) integer classes or ``ignore_label``.

        Raises:
            ValueError: if the shapes do not fit or a target is not a class.
        """
        # Once for all terms, because the host waits for the device.
        check_labels(targets, output.refined.shape[1], self.ignore_label, "target")
        losses = {}
        if output.coarse is None:
            baseline = self._loss(self.baseline, output.refined, targets)
            losses["loss_baseline"] = self.baseline_weight * baseline
        else:
            losses["loss_coarse"] = self.coarse_weight * self._cross_entropy(output.coarse, targets)
            refined = self._loss(self.refined, output.refined, targets)
            losses["loss_refined"] = self.refined_weight * refined
        if output.aux is not None:
            losses["loss_aux"] = self.aux_weight * self._cross_entropy(output.aux, targets)
        return losses
