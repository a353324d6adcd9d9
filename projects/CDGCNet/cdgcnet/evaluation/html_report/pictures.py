"""The pictures of a page: an image, and label maps as layers to lay over it.

Shape shorthand: image (H, W, 3) uint8 RGB, label maps (H, W) uint8.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog

from cdgcnet.data.decoding import NO_LIMIT
from cdgcnet.data.image_io import read_image
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.image_result import ImageRecord
from cdgcnet.evaluation.notable_images import decode
from cdgcnet.utils.progress import progress
from cdgcnet.visualization.change_map import CHANGE_COLORS, UNCHANGED, change_labels
from cdgcnet.visualization.colors import class_colors, label_image
from cdgcnet.visualization.encoding import data_url, jpeg

_SIDE = 640  # pixels of the longer side; larger pictures are scaled down
_BYTES = 7_000_000  # of all pictures of a page, so that it stays below 10 MB
_NOTHING = UNCHANGED  # a transparent pixel of a layer


class Picture(NamedTuple):
    """One image of a page; its layers have the same size. All are addresses "data:…".

    Attributes:
        name: of the file.
        reasons: why it was chosen.
        image: JPEG.
        truth, refined, change: PNG, transparent where there is nothing to show.
        coarse: the same; None without a refinement.
    """

    name: str
    reasons: str
    width: int
    height: int
    image: str
    truth: str
    coarse: str | None
    refined: str
    change: str


def draw_pictures(evaluator: CDGCEvaluator, chosen: dict[str, str]) -> tuple[list[Picture], int]:
    """The chosen images, as many as fit into a page, and the number of those left out.

    Args:
        evaluator: finished.
        chosen: file name -> reasons.
    """
    dicts = {d["file_name"]: d for d in DatasetCatalog.get(evaluator.dataset_name)}
    records = {r.file_name: r for r in evaluator.records}
    pictures: list[Picture] = []
    size = 0
    for name, reasons in progress(chosen.items(), "drawing report.html", "image"):
        if not records[name].label_maps:  # an interrupted evaluation may have kept fewer
            continue
        picture = _draw(evaluator, dicts[name], records[name], reasons)
        size += sum(len(part) for part in picture if isinstance(part, str))
        if size > _BYTES:
            break
        pictures.append(picture)
    return pictures, len(chosen) - len(pictures)


def _draw(
    evaluator: CDGCEvaluator, dataset_dict: dict, record: ImageRecord, reasons: str
) -> Picture:
    labels = {kind: decode(png) for kind, png in record.label_maps.items()}
    refined, coarse = labels["refined"], labels.get("coarse")
    height, width = refined.shape
    found = evaluator.read_ground_truth(dataset_dict, (height, width))
    truth = found["ground_truth"].numpy()
    colors = class_colors(evaluator.metadata)
    image = read_image(record.file_name, max_pixels=NO_LIMIT)
    scale = min(1.0, _SIDE / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    changes = change_labels(truth, coarse, refined, evaluator.ignore_label)
    shown = np.where(truth == evaluator.ignore_label, _NOTHING, truth)
    return Picture(
        Path(record.file_name).name,
        reasons,
        *size,
        data_url(jpeg(small, quality=80), "image/jpeg"),
        _layer(shown, size, colors),
        None if coarse is None else _layer(coarse, size, colors),
        _layer(refined, size, colors),
        _layer(changes, size, CHANGE_COLORS),
    )


def _layer(labels: np.ndarray, size: tuple[int, int], colors: Sequence[Sequence[int]]) -> str:
    small = cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    stream = io.BytesIO()
    label_image(small, colors).save(stream, "PNG", optimize=True, transparency=_NOTHING)
    return data_url(stream.getvalue(), "image/png")
