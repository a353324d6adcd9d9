"""Sums of class probabilities over views (TTA) and windows, one (M, H, W) tensor however many.

Shape shorthand: M classes, H x W pixels.
"""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from cdgcnet.modeling.postprocessing import ResizeGeometry, check_fits, score_bands

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class AccumulatorOptions(NamedTuple):
    """Where probabilities are summed up.

    Attributes:
        device: None for the model's.
        dtype: float16 halves the memory and keeps about three decimal digits.
    """

    device: torch.device | None = None
    dtype: torch.dtype = torch.float32

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "AccumulatorOptions":
        """TEST.ACCUMULATE.{DEVICE, DTYPE}."""
        keys = cfg.TEST.ACCUMULATE
        device = None if keys.DEVICE == "model" else torch.device(keys.DEVICE)
        return cls(device, _DTYPES[keys.DTYPE])


class ProbabilityAccumulator:
    """Adds up softmax probabilities in bands of rows: full-size logits never exist as a whole."""

    def __init__(
        self, classes: int, size: tuple[int, int], device: torch.device, place: AccumulatorOptions
    ):
        """
        Args:
            classes, size: M and (H, W).
            device: of the model.
            place: of the sum.

        Raises:
            MemoryError: if the sum cannot fit.
        """
        device = place.device or device
        check_fits(classes, size, device, torch.finfo(place.dtype).bits // 8, copies=1)
        self.total = torch.zeros(classes, *size, device=device, dtype=place.dtype)

    def add(
        self,
        scores: Tensor,
        sizes: ResizeGeometry,
        align_corners: bool,
        *,
        logits: bool = True,
        flip: bool = False,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        """Add one prediction.

        Args:
            scores: (M, h, w).
            sizes: the way from scores to pixels.
            align_corners: of that way.
            logits: whether a softmax is due; False: the scores are probabilities already.
            flip: mirror the prediction left to right.
            corner: (y, x) of the prediction within H x W.
        """
        y, x = corner
        for rows, band in score_bands(scores, sizes, align_corners, flip):
            part = band.softmax(dim=0) if logits else band
            target = self.total[:, y + rows.start : y + rows.stop, x : x + sizes.output[1]]
            target += part.to(target.device, target.dtype)

    def mean(self, count: float | Tensor) -> Tensor:
        """The (M, H, W) sum divided in place by how often each pixel was added to."""
        return self.total.div_(count)

    def labels(self) -> Tensor:
        """The most probable class of each pixel, (H, W) uint8."""
        return self.total.max(dim=0).indices.to(torch.uint8)
