"""Windows of sliding-window inference, in pixels of the network's input."""

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import torch
from detectron2.config import CfgNode
from torch import Tensor

Window: TypeAlias = tuple[slice, slice]  # rows and columns


def starts(length: int, crop: int, stride: int) -> list[int]:
    """Start of each window along one axis; the last window ends where the axis ends."""
    steps = max(0, math.ceil((length - crop) / stride))
    return [max(0, min(i * stride, length - crop)) for i in range(steps + 1)]


class SlidingWindow(NamedTuple):
    """Size and stride of the windows, (height, width) each."""

    crop: tuple[int, int]
    stride: tuple[int, int]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SlidingWindow | None":
        """Windows from TEST.SLIDE.{CROP, STRIDE}; None unless TEST.SLIDE.ENABLED."""
        slide = cfg.TEST.SLIDE
        return cls(tuple(slide.CROP), tuple(slide.STRIDE)) if slide.ENABLED else None

    def covers(self, size: tuple[int, int]) -> bool:
        """Whether a single window covers an image (H, W)."""
        return size[0] <= self.crop[0] and size[1] <= self.crop[1]

    def windows(self, size: tuple[int, int]) -> Iterator[Window]:
        """Rows and columns of each window of an image (H, W), clipped to the image."""
        for y in starts(size[0], self.crop[0], self.stride[0]):
            for x in starts(size[1], self.crop[1], self.stride[1]):
                yield (
                    slice(y, min(y + self.crop[0], size[0])),
                    slice(x, min(x + self.crop[1], size[1])),
                )

    def counts(self, size: tuple[int, int]) -> Tensor:
        """The number of windows that cover each pixel, (H, W)."""
        axes = []
        for length, crop, stride in zip(size, self.crop, self.stride, strict=True):
            count = torch.zeros(length)
            for start in starts(length, crop, stride):
                count[start : start + crop] += 1
            axes.append(count)
        return axes[0][:, None] * axes[1]
