"""Resizes and crops in one step, with the result of resizing everything and then cropping.

A training crop is often a small part of the resized image: at ratio 2 a 769 x 769 crop takes 7 %
of a 1024 x 2048 image's pixels. Only the part of the source that the crop shows is resized.
"""

import math
from functools import lru_cache

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


def _aligned(start: int, stop: int, in_size: int, out_size: int) -> tuple[slice, slice]:
    """A part of the source, and what it resizes to, that holds the pixels [start, stop).

    Pillow computes its weights from the ratio of the sizes. With g = gcd(in_size, out_size), every
    in_size / g source pixels become out_size / g, so between such edges a part has the ratio and
    the phase of the whole.

    Returns:
        Slice of the source and slice of the resized axis, both of the same ratio as the whole.
    """
    g = math.gcd(in_size, out_size)
    step_in, step_out = in_size // g, out_size // g
    # The filter looks one source pixel around when it enlarges, one resized pixel when it shrinks;
    # cut edges must be further away than that.
    margin = math.ceil(max(1, out_size / in_size)) + 1
    first = max(0, start - margin) // step_out
    last = min(g, -(-(stop + margin) // step_out))
    return slice(first * step_in, last * step_in), slice(first * step_out, last * step_out)


@lru_cache(maxsize=1024)
def _nearest(in_size: int, out_size: int) -> np.ndarray:
    """Source index of every resized pixel, as Pillow's nearest resize takes it."""
    # Pillow adds the step up pixel by pixel; so does cumsum, rounding included.
    steps = np.full(out_size, in_size / out_size)
    steps[0] *= 0.5
    return np.minimum(np.cumsum(steps).astype(np.int64), in_size - 1)


class ResizeCropTransform(Transform):
    """``T.ResizeTransform`` followed by a crop, without resizing what the crop discards.

    For uint8 images (bilinear, Pillow's widened filter) and labels (nearest; always exact). Image
    values are the same bit for bit unless Pillow, which rounds between its two passes, takes
    them in another order for the part than for the whole: it may when it shrinks a narrow crop,
    and then some values differ by 1. The saving grows with the common divisor of a side's old and
    new size.
    """

    def __init__(self, resize: T.ResizeTransform, y: int, x: int, height: int, width: int):
        """
        Args:
            resize: of the whole image.
            y, x, height, width: the crop in pixels of the resized image.
        """
        super().__init__()
        self._set_attributes(locals())

    def _rows(self) -> tuple[slice, slice]:
        return _aligned(self.y, self.y + self.height, self.resize.h, self.resize.new_h)

    @property
    def rows_needed(self) -> int:
        """The source's rows that the crop shows all lie above this one."""
        return self._rows()[0].stop

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8, or its first ``rows_needed`` rows -> (height, width, C)."""
        resize = self.resize
        rows, out_rows = self._rows()
        columns, out_columns = _aligned(self.x, self.x + self.width, resize.w, resize.new_w)
        part = img[rows, columns]
        size = out_rows.stop - out_rows.start, out_columns.stop - out_columns.start
        if part.shape[:2] != size:
            part = T.ResizeTransform(*part.shape[:2], *size, resize.interp).apply_image(part)
        y, x = self.y - out_rows.start, self.x - out_columns.start
        return part[y : y + self.height, x : x + self.width]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) labels -> (height, width)."""
        rows = _nearest(self.resize.h, self.resize.new_h)[self.y : self.y + self.height]
        columns = _nearest(self.resize.w, self.resize.new_w)[self.x : self.x + self.width]
        return segmentation.take(rows, axis=0).take(columns, axis=1)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return self.resize.apply_coords(coords) - (self.x, self.y)
