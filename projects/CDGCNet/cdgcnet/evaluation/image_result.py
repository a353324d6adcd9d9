"""The result of one image: exact counts, small enough to be kept for every image.

Shape shorthand: M classes.
"""

import base64
import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cdgcnet.evaluation.boundary_iou import boundary_counts, boundary_radius
from cdgcnet.evaluation.confusion import confusion_matrix, graph_effect
from cdgcnet.evaluation.metrics import segmentation_metrics
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.utils.io import atomic_write


class Sparse(NamedTuple):
    """The non-zero entries of an integer array; a single image holds few of the classes."""

    shape: tuple[int, ...]
    place: np.ndarray  # int32, index in the flattened array
    value: np.ndarray  # int64


def to_sparse(array: np.ndarray) -> Sparse:
    flat = array.ravel()
    place = flat.nonzero()[0]
    return Sparse(array.shape, place.astype(np.int32), flat[place].astype(np.int64))


def total(parts: Sequence[Sparse]) -> np.ndarray:
    """The sum of one or more arrays of one shape, int64."""
    flat = np.zeros(math.prod(parts[0].shape), np.int64)
    for part in parts:
        flat[part.place] += part.value
    return flat.reshape(parts[0].shape)


@dataclass
class ImageRecord:
    """One image's counts.

    Attributes:
        file_name: of the image.
        counts: "refined", "coarse", "oracle" (confusion), "fixed", "broken" (M, M);
            "boundary_refined", … (3, M); "nodes" (M,); those that exist.
        instances: "refined", …: rows of ``cityscapes_metrics.count_instances``.
        rle: entries of Detectron2's ``sem_seg_predictions.json``.
        label_maps: "refined", …: PNG of (H, W) uint8, of images that may be drawn.
        files: size and time of the last change of the image and its labels, for TEST.RESUME.
    """

    file_name: str
    counts: dict[str, Sparse] = field(default_factory=dict)
    instances: dict[str, list[list[int]]] = field(default_factory=dict)
    rle: list[dict] = field(default_factory=list)
    label_maps: dict[str, bytes] = field(default_factory=dict)
    files: list[list[int]] = field(default_factory=list)

    def to_json(self) -> str:
        """One line of text."""
        counts = {
            name: [list(part.shape), part.place.tolist(), part.value.tolist()]
            for name, part in self.counts.items()
        }
        maps = {name: base64.b64encode(png).decode() for name, png in self.label_maps.items()}
        content = {**vars(self), "counts": counts, "label_maps": maps}
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "ImageRecord":
        """The record of a line that :meth:`to_json` made."""
        content = json.loads(text)
        counts = {
            name: Sparse(tuple(shape), np.array(place, np.int32), np.array(value, np.int64))
            for name, (shape, place, value) in content.pop("counts").items()
        }
        maps = content.pop("label_maps")
        label_maps = {name: base64.b64decode(png) for name, png in maps.items()}
        return cls(counts=counts, label_maps=label_maps, **content)


def count_image(
    labels: np.ndarray,
    predictions: dict[PredictionKind, np.ndarray],
    num_classes: int,
    ignore_label: int,
    boundary_ratio: float,
) -> dict[str, Sparse]:
    """All counts of one image.

    Args:
        labels: (H, W) uint8 ground truth.
        predictions: (H, W) uint8 each; the refined one, and the others that exist.
        num_classes: M.
        ignore_label: M or more.
        boundary_ratio: width of the boundary as a fraction of the diagonal; 0 for no boundary IoU.
    """
    maps = {kind.value: prediction for kind, prediction in predictions.items()}
    counts = {
        name: confusion_matrix(labels, prediction, num_classes, ignore_label)
        for name, prediction in maps.items()
    }
    if "coarse" in maps:
        counts["fixed"], counts["broken"] = graph_effect(
            labels, maps["coarse"], maps["refined"], num_classes
        )
    if boundary_ratio:
        height, width = labels.shape
        radius = boundary_radius((height, width), boundary_ratio)
        at_boundary = boundary_counts(labels, maps, num_classes, ignore_label, radius)
        counts |= {f"boundary_{name}": part for name, part in at_boundary.items()}
    return {name: to_sparse(array) for name, array in counts.items()}


def image_scores(record: ImageRecord, names: Sequence[str]) -> dict[str, float]:
    """One row of the CSV: mIoU, pixel accuracy, coarse mIoU, fixed and broken pixels, IoUs."""
    metrics = segmentation_metrics(total([record.counts["refined"]]), names)
    scores = {"mIoU": metrics["mIoU"], "pACC": metrics["pACC"]}
    if "coarse" in record.counts:
        coarse = segmentation_metrics(total([record.counts["coarse"]]), names)
        scores["coarse_mIoU"] = coarse["mIoU"]
        for key in ("fixed", "broken"):
            scores[key] = int(record.counts[key].value.sum())
    return scores | {key: value for key, value in metrics.items() if key.startswith("IoU-")}


def write_csv(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """One line per image; a score that is not defined is an empty cell.

    Args:
        path: of the CSV file.
        scores: file name -> :func:`image_scores`, not empty.
    """
    columns = list(dict.fromkeys(key for row in scores.values() for key in row))
    with atomic_write(path) as tmp_path, tmp_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *columns])
        for name, row in scores.items():
            cells = [row.get(key, math.nan) for key in columns]
            writer.writerow([name, *("" if math.isnan(v) else v for v in cells)])
