#!/usr/bin/env python
"""Evaluation of 1024 x 2048 predictions: time beside Detectron2's evaluator and cityscapesscripts.

    python benchmarks/bench_evaluation.py [--output benchmarks/results]

Ground truth is read from PNG by all of them. "As shipped" Detectron2's ``SemSegEvaluator`` also
encodes every class of every image for its JSON; without that it is named "no RLE". Ours counts what
they count (confusion matrix), and in "everything" the coarse and refined prediction with boundary
IoU and what the graph changed. The scores are compared first.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from maps import blob_map, one_hot_logits
from PIL import Image
from protocol import arguments, attempt, claim, exit_code, measure, one_thread, report
from torch import Tensor

from cdgcnet.data.datasets.cityscapes_classes import LABEL_IDS
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.modeling.postprocessing import ResizeGeometry, full_size_logits, label_map
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind

SIZE = (1024, 2048)
NODES = (128, 256)
GEOMETRY = ResizeGeometry(SIZE, SIZE, SIZE, align_corners=True)
MAX_DIFFERENT = 5


class NoRle(SemSegEvaluator):
    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list:
        return []


def scores(classes: int, shift: int) -> Tensor:
    """Stride-8 logits (M, 128, 256) of a blob map, moved by some nodes, with noise."""
    g = torch.Generator().manual_seed(shift)
    sharp = one_hot_logits(blob_map(NODES[0], classes), classes)
    logits = 4 * F.interpolate(sharp, size=NODES, mode="bilinear")[0].roll(shift, dims=2)
    return logits + torch.randn(logits.shape, generator=g) / 2


def register(folder: Path, classes: int) -> str:
    """A set of one image whose labels are a third map with an ignored border."""
    name = f"bench_evaluation_{classes}"
    labels = label_map(scores(classes, 2), GEOMETRY).numpy()
    labels[:, :40] = 255
    Image.fromarray(labels).save(folder / f"{name}.png")
    ids = np.zeros(256, np.uint8)
    ids[: len(LABEL_IDS)] = LABEL_IDS
    Image.fromarray(ids[labels]).save(folder / f"{name}_labelIds.png")
    entry = {"file_name": f"{name}.jpg", "sem_seg_file_name": str(folder / f"{name}.png")}
    DatasetCatalog.register(name, lambda: [entry])
    MetadataCatalog.get(name).set(
        stuff_classes=[f"class {i}" for i in range(classes)], ignore_label=255
    )
    return name


def ours(name: str, classes: int, output: Callable[[], dict], boundary: float = 0.0) -> Callable:
    inputs = DatasetCatalog.get(name)

    def run() -> dict:
        evaluator = CDGCEvaluator(name, classes, boundary_ratio=boundary)
        evaluator.process(inputs, [output()])
        return evaluator.evaluate()["sem_seg"]

    return run


def theirs(name: str, output: Callable[[], dict], kind: type[SemSegEvaluator]) -> Callable:
    inputs = DatasetCatalog.get(name)

    def run() -> dict:
        evaluator = kind(name, distributed=False)
        evaluator.reset()
        evaluator.process(inputs, [output()])
        return evaluator.evaluate()["sem_seg"]

    return run


def official(folder: Path, name: str, labels: Tensor) -> Callable[[], Any] | None:
    """cityscapesscripts' pixel-level evaluation of the same image, or None without the package."""
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as module
    except ImportError:
        return None
    if not hasattr(np, "in1d"):  # cityscapesscripts 2.3 uses what NumPy 2.4 has dropped
        vars(np)["in1d"] = np.isin
    module.args.quiet, module.args.JSONOutput = True, False
    module.args.evalInstLevelScore = False
    prediction = folder / f"{name}_prediction.png"
    Image.fromarray(np.array(LABEL_IDS, np.uint8)[labels.numpy()]).save(prediction)
    truth = str(folder / f"{name}_labelIds.png")

    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return module.evaluateImgLists([str(prediction)], [truth], module.args)

    return run


def compare(folder: Path, classes: int, rounds: int) -> list[list[str]]:
    name = register(folder, classes)
    coarse, refined = scores(classes, 1), scores(classes, 0)
    full = full_size_logits(refined, GEOMETRY)
    labels = label_map(refined, GEOMETRY)
    coarse_labels = label_map(coarse, GEOMETRY)
    different = int((full.argmax(dim=0) != labels).sum())
    refined_only = LabelPrediction({PredictionKind.REFINED: labels})
    both = LabelPrediction({PredictionKind.REFINED: labels, PredictionKind.COARSE: coarse_labels})
    contestants = {
        "ours, label maps": ours(name, classes, lambda: refined_only),
        "ours, everything": ours(name, classes, lambda: both, 0.02),
        "ours, full-size logits": ours(name, classes, lambda: {"sem_seg": full}),
        "ours, stride 8": ours(
            name,
            classes,
            lambda: LabelPrediction({PredictionKind.REFINED: label_map(refined, GEOMETRY)}),
        ),
        "Detectron2": theirs(name, lambda: {"sem_seg": full}, SemSegEvaluator),
        "Detectron2, no RLE": theirs(name, lambda: {"sem_seg": full}, NoRle),
        "Detectron2, stride 8": theirs(
            name,
            lambda: {"sem_seg": full_size_logits(refined, GEOMETRY)},
            SemSegEvaluator,
        ),
    }
    if classes == 19:
        script = official(folder, name, labels)
        if script is not None:
            contestants["cityscapesscripts"] = script
    mean = contestants["ours, label maps"]()
    assert abs(mean["mIoU_union"] - contestants["Detectron2, no RLE"]()["mIoU"]) < 0.01
    times = measure(contestants, rounds=rounds)

    def against(baseline: str, contestant: str) -> float:
        return times.ratio(baseline, contestant)

    cell = f"{classes} classes: "
    rows = [
        claim(
            cell + "throughput, ours from label maps / Detectron2 as shipped",
            against("Detectron2", "ours, label maps"),
            10,
            at_least=True,
        ),
        claim(
            cell + "time from stride-8 logits to metrics, ours / Detectron2 as shipped",
            against("ours, stride 8", "Detectron2, stride 8"),
            0.05 if classes < 100 else 0.02,
        ),
        claim(
            cell + "pixels of the label map that differ, of 2.1 M",
            different,
            MAX_DIFFERENT,
        ),
    ]
    beside = {
        "throughput, ours from label maps / Detectron2 without RLE": (
            "Detectron2, no RLE",
            "ours, label maps",
        ),
        "throughput, ours from full-size logits / Detectron2 as shipped": (
            "Detectron2",
            "ours, full-size logits",
        ),
        "throughput, ours from full-size logits / Detectron2 without RLE": (
            "Detectron2, no RLE",
            "ours, full-size logits",
        ),
        "throughput, ours with everything / Detectron2 as shipped": (
            "Detectron2",
            "ours, everything",
        ),
    }
    if "cityscapesscripts" in contestants:
        beside["throughput, ours from label maps / cityscapesscripts, from PNGs"] = (
            "cityscapesscripts",
            "ours, label maps",
        )
    rows += [[cell + text, f"{against(*pair):.3g}", "", ""] for text, pair in beside.items()]
    DatasetCatalog.remove(name)
    return rows


def main() -> None:
    args = arguments(__doc__).parse_args()
    one_thread()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for classes in (19, 171):
            part = partial(compare, Path(folder), classes, args.rounds)
            rows += attempt(f"{classes} classes", part)
    report(
        "bench_evaluation",
        f"Evaluation of one {SIZE[0]} x {SIZE[1]} prediction",
        ["cell", "found", "target", ""],
        rows,
        args.output,
    )
    sys.exit(exit_code())


if __name__ == "__main__":
    main()
