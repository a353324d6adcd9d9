#!/usr/bin/env python
"""What ``cdgcnet eval`` costs beyond the network: reading, label maps, scores, pictures, report.

    python benchmarks/bench_evaluation_extras.py [--output benchmarks/results]

``evaluate_dataset`` runs on 100 generated street scenes with its defaults: refined and coarse
predictions, boundary IoU, the graph's effect, CSV, matrices, 12 pictures and ``report.html``. The
network is replaced by stride-8 logits made beforehand from the labels, so all the CPU time that is
left is the evaluation's own. It is divided by that of 100 forward passes of a ResNet-101 network
with random weights, of which one (1024 x 2048) or three (360 x 480) are timed. Ten different scenes
are listed ten times each. The parts are named by the function that does them.
"""

import contextlib
import cProfile
import io
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from maps import one_hot_logits
from PIL import Image
from protocol import arguments, claim, one_thread, report, shrunk
from torch import nn

from cdgc import resize_targets
from cdgcnet import Trainer, load_cfg
from cdgcnet.data.datasets.cityscapes import load_tree
from cdgcnet.data.datasets.cityscapes_classes import COLORS, NAMES
from cdgcnet.data.synthetic.writer import write_street_scenes
from cdgcnet.evaluation.testing import evaluate_dataset
from cdgcnet.modeling.postprocessing import ResizeGeometry
from cdgcnet.modeling.predictions import PredictionKind, ScorePrediction

CONFIG = Path(__file__).resolve().parents[1] / (
    "configs/Cityscapes-SemanticSegmentation/cdgcnet_r101_os8_769_30k.yaml"
)
IMAGES, SCENES = 100, 10
PARTS = {
    "reading images and labels": ("cdgcnet/data/evaluation_mapper.py", "__call__"),
    "label maps": ("cdgcnet/modeling/postprocessing.py", "label_map"),
    "counting, boundary IoU among it": ("cdgcnet/evaluation/evaluator.py", "process"),
    "matrices and CSV": ("cdgcnet/evaluation/reporter.py", "write_files"),
    "pictures of the matrices": ("cdgcnet/evaluation/reporter.py", "draw_matrices"),
    "pictures of the worst images": ("cdgcnet/evaluation/reporter.py", "draw_images"),
    "report.html": ("cdgcnet/evaluation/html_report/page.py", "write_evaluation_page"),
}


def register(folder: Path, size: tuple[int, int]) -> str:
    """A set of IMAGES scenes; returns its name."""
    height, width = size
    write_street_scenes(folder / "scenes", num_train=1, num_val=SCENES, height=height, width=width)
    dicts = []
    for scene in load_tree(folder / "scenes", "val", "scenes"):
        image = Path(scene["file_name"])
        for i in range(IMAGES // SCENES):
            copy = folder / f"{image.stem}_{i}.png"
            shutil.copy(image, copy)
            dicts.append({**scene, "file_name": str(copy), "scene": scene["file_name"]})
    name = f"bench_evaluation_extras_{height}_{width}"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        stuff_classes=list(NAMES), stuff_colors=list(COLORS), ignore_label=255
    )
    return name


def predictions(name: str) -> dict[str, ScorePrediction]:
    """Image file of a scene -> what a good network predicts: the labels a little displaced."""
    g = torch.Generator().manual_seed(0)
    found = {}
    for x in DatasetCatalog.get(name):
        if x["scene"] not in found:
            with Image.open(x["sem_seg_file_name"]) as image:
                labels = torch.from_numpy(np.array(image)).long()
            size = (labels.shape[0], labels.shape[1])
            labels[labels == 255] = 0
            grid = (-(-size[0] // 8), -(-size[1] // 8))
            nodes = resize_targets(labels[None], grid, align_corners=True)[0]
            scores = {}
            for kind, shift in ((PredictionKind.REFINED, 0), (PredictionKind.COARSE, 2)):
                logits = 4 * one_hot_logits(nodes.roll(shift, dims=1), len(NAMES))[0]
                scores[kind] = logits + torch.randn(logits.shape, generator=g)
            counts = torch.bincount(nodes.flatten(), minlength=len(NAMES))
            geometry = ResizeGeometry(size, size, size, align_corners=True)
            found[x["scene"]] = ScorePrediction(scores, True, geometry, counts)
    return found


def forward_seconds(model: nn.Module, size: tuple[int, int], rounds: int) -> float:
    """CPU time of one forward pass, the median of some."""
    inputs = [{"image": torch.zeros(3, *size, dtype=torch.uint8)}]
    model.predict_scores([{"image": torch.zeros(3, 64, 64, dtype=torch.uint8)}])
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        model.predict_scores(inputs, all_kinds=True)
        times.append(time.process_time() - begin)
    return sorted(times)[len(times) // 2]


def evaluate(cfg: CfgNode, model: nn.Module, name: str) -> Callable[[], None]:
    """The whole evaluation with stored predictions."""
    stored = predictions(name)
    model.predict_scores = lambda inputs, all_kinds: [stored[x["scene"]] for x in inputs]

    def run() -> None:
        evaluator = Trainer.build_evaluator(cfg, name)
        loader = partial(Trainer.build_test_loader, cfg, name)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluate_dataset(cfg, model, name, evaluator, loader)

    return run


def measure(folder: Path, size: tuple[int, int], rounds: int, limit: float) -> list[list[str]]:
    name = register(folder, size)
    cfg = load_cfg(
        str(CONFIG),
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "from_scratch"),
            *("DATALOADER.NUM_WORKERS", 0, "DATASETS.TEST", f"('{name}',)"),
            *("OUTPUT_DIR", str(folder / "output")),
        ],
    )
    model = Trainer.build_model(cfg).eval()
    with torch.no_grad():
        forward = forward_seconds(model, size, rounds)
    run = evaluate(cfg, model, name)
    profile = cProfile.Profile(time.process_time)
    begin = time.process_time()
    profile.runcall(run)
    network = IMAGES * forward
    cell = f"{size[0]} x {size[1]}: "
    ratio = (time.process_time() - begin) / network
    rows = [claim(cell + "evaluation beyond the network / network", ratio, limit)]
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for part, (file, function) in PARTS.items():
        [seconds] = [
            values[3]
            for (path, _, called), values in stats.items()
            if called == function and path.endswith(file)
        ]
        rows.append([cell + part, f"{seconds / network:.2g}", "", ""])
    DatasetCatalog.remove(name)
    return rows


def main() -> None:
    args = arguments(__doc__).parse_args()
    one_thread()
    rows = []
    for size, rounds, limit in (((360, 480), 3, 0.25), ((1024, 2048), 1, 0.10)):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), (shrunk(size[0]), shrunk(size[1])), rounds, limit)
    report(
        "bench_evaluation_extras",
        f"An evaluation of {IMAGES} images beyond the network, ResNet-101, 19 classes",
        ["cell", "found", "target", ""],
        rows,
        args.output,
    )


if __name__ == "__main__":
    sys.exit(main())
