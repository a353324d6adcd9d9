"""Images worth looking at: the worst, and those in which the graph fixed or broke the most."""

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cdgcnet.evaluation.image_result import ImageRecord, image_scores
from cdgcnet.modeling.predictions import PredictionKind


class Criterion(NamedTuple):
    """One ranking of images.

    Attributes:
        key: of :func:`~cdgcnet.evaluation.image_result.image_scores`.
        reason: why an image was chosen, a format of rank and score.
        sign: 1 if low scores come first, -1 if high ones do.
    """

    key: str
    reason: str
    sign: int

    def rank(self, scores: dict[str, float], file_name: str) -> tuple[float, str] | None:
        """What images are sorted by; None if the image has nothing to show."""
        value = scores.get(self.key, math.nan)
        if math.isnan(value) or (value == 0 and self.key != "mIoU"):
            return None
        return self.sign * value, file_name


CRITERIA = (
    Criterion("mIoU", "worst {}: mIoU {:.1f}", 1),
    Criterion("fixed", "most fixed {}: {:.0f} pixels", -1),
    Criterion("broken", "most broken {}: {:.0f} pixels", -1),
)


def choose_images(scores: dict[str, dict[str, float]], count: int) -> dict[str, str]:
    """The first images of every criterion.

    Args:
        scores: file name -> :func:`~cdgcnet.evaluation.image_result.image_scores`.
        count: number of images per criterion.

    Returns:
        File name -> the reasons why it was chosen.
    """
    chosen: dict[str, list[str]] = {}
    for criterion in CRITERIA:
        ranks = (criterion.rank(row, name) for name, row in scores.items())
        first = sorted(rank for rank in ranks if rank is not None)[:count]
        for place, (value, name) in enumerate(first, start=1):
            reason = criterion.reason.format(place, criterion.sign * value)
            chosen.setdefault(name, []).append(reason)
    return {name: "; ".join(reasons) for name, reasons in chosen.items()}


class NotableImages:
    """Keeps the label maps of the images that :func:`choose_images` may still choose.

    They are compressed and stored in the images' records, so that they travel with them to the
    main process and into an interrupted evaluation. At most ``3 * count`` records of a process
    hold label maps at a time. An image that is among the first of all images is also among the
    first of its process, so no chosen image is ever without its label maps.
    """

    def __init__(self, names: Sequence[str], count: int):
        """
        Args:
            names: of the classes.
            count: number of images per criterion; 0 keeps nothing.
        """
        self.names = names
        self.count = count
        self._first: dict[Criterion, list[tuple[float, str]]] = {c: [] for c in CRITERIA}
        self._records: dict[str, ImageRecord] = {}

    def add(
        self, record: ImageRecord, labels: dict[PredictionKind, np.ndarray] | None = None
    ) -> None:
        """Consider one image.

        Args:
            record: with its counts. Its label maps are kept, or removed from it.
            labels: (H, W) uint8; None if the record already has what it needs.
        """
        name = record.file_name
        if self.count and PredictionKind.REFINED in record.counts and name not in self._records:
            scores = image_scores(record, self.names)
            for criterion, first in self._first.items():
                rank = criterion.rank(scores, name)
                if rank is not None:
                    bisect.insort(first, rank)
                    del first[self.count :]
        candidates = {name for first in self._first.values() for _, name in first}
        if name not in candidates:
            record.label_maps = {}
        elif name not in self._records:
            if labels is not None:
                record.label_maps = {kind.value: encode(x) for kind, x in labels.items()}
            self._records[name] = record
        for dropped in self._records.keys() - candidates:
            self._records.pop(dropped).label_maps = {}


def encode(labels: np.ndarray) -> bytes:
    """A label map (H, W) uint8 as PNG."""
    return cv2.imencode(".png", labels)[1].tobytes()


def decode(data: bytes) -> np.ndarray:
    """The label map (H, W) uint8 of :func:`encode`."""
    labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert labels is not None
    return labels
