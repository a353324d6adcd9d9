"""Sums class probabilities over views (TTA) and windows in a single (M, H, W) tensor.

Shape shorthand: M classes, H x W pixels.
"""

import math
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from cdgcnet.modeling.postprocessing import (
    ResizeGeometry,
    best_class,
    check_fits,
    score_bands,
)

_LOG2_E = math.log2(math.e)
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class AccumulatorOptions(NamedTuple):
    """Where and how probabilities are accumulated.

    Attributes:
        device: None for the model's device.
        dtype: float16 halves the memory and keeps about three decimal digits.
    """

    device: torch.device | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "AccumulatorOptions":
        """Options from TEST.ACCUMULATE.{DEVICE, DTYPE}."""
        keys = cfg.TEST.ACCUMULATE
        device = None if keys.DEVICE == "model" else torch.device(keys.DEVICE)
        return cls(device, _DTYPES[keys.DTYPE])


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities over the first dimension; on a CPU they overwrite the logits.

    There PyTorch computes powers of 2 three times as fast as exp, and its softmax uses exp.
    """
    if logits.device.type != "cpu":
        return logits.softmax(dim=0)
    powers = logits.sub_(logits.amax(dim=0)).mul_(_LOG2_E).exp2_()
    return powers.div_(powers.sum(dim=0))


class ProbabilityAccumulator:
    """Adds up softmax probabilities in bands of rows, without storing full-size logits."""

    def __init__(
        self, classes: int, size: tuple[int, int], device: torch.device, options: AccumulatorOptions
    ):
        """
        Args:
            classes, size: M and (H, W).
            device: device of the model.
            options: device and dtype of the sum.

        Raises:
            MemoryError: if the sum cannot fit.
        """
        device = options.device or device
        check_fits(classes, size, device, torch.finfo(options.dtype).bits // 8, copies=1)
        self.total = torch.zeros(classes, *size, device=device, dtype=options.dtype)

    def add(
        self,
        scores: Tensor,
        geometry: ResizeGeometry,
        *,
        logits: bool = True,
        flip: bool = False,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        """Add one prediction.

        Args:
            scores: (M, h, w).
            geometry: how the scores are resized to pixels.
            logits: True if the scores need a softmax, False if they are probabilities already.
            flip: mirror the prediction left to right.
            corner: (y, x) position of the prediction within H x W.
        """
        y, x = corner
        for rows, band in score_bands(scores, geometry, flip):
            part = _softmax(band) if logits else band
            target = self.total[:, y + rows.start : y + rows.stop, x : x + geometry.output[1]]
            target += part.to(target.device, target.dtype)

    def mean(self, count: float | Tensor) -> Tensor:
        """The (M, H, W) sum divided in place by the number of additions per pixel."""
        return self.total.div_(count)

    def labels(self) -> Tensor:
        """The most probable class of each pixel, (H, W) uint8."""
        return best_class(self.total)
