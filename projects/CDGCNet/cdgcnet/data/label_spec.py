"""What the pixels of label files mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from detectron2.config import CfgNode


@dataclass(frozen=True)
class LabelSpec:
    """Which values labels may hold, and how raw values of a file become class ids.

    Attributes:
        num_classes: M; class ids are 0 … M - 1.
        ignore_label: the id of pixels that have no class.
        lut: 256 ids, one for each raw value of a label file; None: raw values are ids already.
    """

    num_classes: int
    ignore_label: int = 255
    lut: bytes | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> LabelSpec:
        """From MODEL.SEM_SEG_HEAD.{NUM_CLASSES, IGNORE_VALUE}; a dataset dict adds its table."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return cls(head.NUM_CLASSES, head.IGNORE_VALUE)

    def for_sample(self, dataset_dict: Mapping[str, Any]) -> LabelSpec:
        """The same with the look-up table of a dataset dict, "sem_seg_lut"."""
        return replace(self, lut=dataset_dict.get("sem_seg_lut"))

    @property
    def ids(self) -> np.ndarray:
        """(256,) uint8: the id of each raw value, whether it is allowed or not."""
        return np.arange(256, dtype=np.uint8) if self.lut is None else np.frombuffer(self.lut, "u1")

    @property
    def forbidden(self) -> np.ndarray:
        """(256,) bool: raw values that are neither a class nor ignored."""
        return (self.ids >= self.num_classes) & (self.ids != self.ignore_label)

    def to_ids(self, labels: np.ndarray) -> np.ndarray:
        """Raw values (H, W) uint8 -> class ids (H, W) uint8."""
        return labels if self.lut is None else self.ids[labels]
