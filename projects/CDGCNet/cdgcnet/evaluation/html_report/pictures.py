"""The pictures of a page: an image, and label maps as layers to lay over it.

Shape shorthand: image (H, W, 3) uint8 RGB, label maps (H, W) uint8.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from PIL import Image

from cdgcnet.data.decoding import NO_LIMIT
from cdgcnet.data.image_io import read_image
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.image_result import ImageRecord
from cdgcnet.evaluation.notable_images import decode
from cdgcnet.utils.progress import progress
from cdgcnet.visualization.change_map import WRONG
from cdgcnet.visualization.colors import BROKEN, FIXED, class_colors, palette_of

_SIDE = 640  # pixels of the longer side; larger pictures are scaled down
_BYTES = 7_000_000  # of all pictures of a page, so that it stays below 10 MB
_NOTHING = 255  # a transparent pixel of a layer


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
    change = _changes(truth, coarse, refined, evaluator.ignore_label)
    shown = np.where(truth == evaluator.ignore_label, _NOTHING, truth)
    return Picture(
        Path(record.file_name).name,
        reasons,
        *size,
        _jpeg(cv2.resize(image, size, interpolation=cv2.INTER_AREA)),
        _layer(shown, size, colors),
        None if coarse is None else _layer(coarse, size, colors),
        _layer(refined, size, colors),
        _layer(change, size, (FIXED, BROKEN, WRONG)),
    )


def _changes(
    truth: np.ndarray, coarse: np.ndarray | None, refined: np.ndarray, ignore_label: int
) -> np.ndarray:
    """0 where the graph fixed a pixel, 1 where it broke one, 2 where both predictions are wrong."""
    counted = truth != ignore_label
    wrong = counted & (refined != truth)
    before = wrong if coarse is None else counted & (coarse != truth)
    change = np.full(truth.shape, _NOTHING, np.uint8)
    change[before & ~wrong] = 0
    change[wrong & ~before] = 1
    change[wrong & before] = 2
    return change


def _layer(labels: np.ndarray, size: tuple[int, int], colors: Sequence[Sequence[int]]) -> str:
    small = cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    image = Image.fromarray(small)
    image.putpalette(palette_of(colors))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, transparency=_NOTHING)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _jpeg(rgb: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
