#!/usr/bin/env python
"""What ``cdgcnet predict`` costs beyond the network: reading, resizing, drawing and writing.

    python benchmarks/bench_predict.py [--output benchmarks/results]

A ResNet-50 network with random weights; "network" is its forward pass on an image that is in memory
at the network's size. "predict" is everything from the JPEG to the label PNG and the overlay. The
20-megapixel photo is predicted as a user would on a CPU: the network sees it at 512 or 768 pixels
(INPUT.MIN_SIZE_TEST), and labels and overlay are made from the photo. Photos and label regions are
smooth noise, which costs more to compress than real ones.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from PIL import Image
from protocol import Unsteady, arguments, claim, measure, one_thread, report

from cdgcnet import Predictor, Trainer, load_cfg
from cdgcnet.engine.prediction import OutputFiles, predict_images
from cdgcnet.engine.prediction_record import PredictionRecord, Source

LIMIT = 0.15
SMALL, LARGE = (360, 480), (3648, 5472)
CONFIG = Path(__file__).resolve().parents[1] / "configs/VOC-SemanticSegmentation"


def photo(path: Path, size: tuple[int, int]) -> Source:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (size[0] // 24, size[1] // 24, 3), dtype=np.uint8)
    Image.fromarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)).save(path)
    return Source(path, path.stem)


def predictor(folder: Path, min_size: int) -> Predictor:
    """A network whose random classifiers predict many classes."""
    overrides = ["INPUT.MIN_SIZE_TEST", min_size, "INPUT.MAX_SIZE_TEST", 4096]
    cfg = load_cfg(str(CONFIG / "cdgcnet_r50_os8_cpu.yaml"), overrides)
    weights = folder / "model.pth"
    if not weights.exists():
        torch.manual_seed(0)
        model = Trainer.build_model(cfg)
        for name, parameter in model.named_parameters():
            if "predictor" in name:
                torch.nn.init.normal_(parameter)
        torch.save({"model": model.state_dict()}, weights)
    cfg.MODEL.WEIGHTS = str(weights)
    return Predictor(cfg)


def contestants(net: Predictor, source: Source, folder: Path) -> dict[str, Callable]:
    metadata = MetadataCatalog.get("bench_predict")
    image = cv2.imread(str(source.path))
    inputs = [net._input(image)]
    files = OutputFiles(folder)
    record = PredictionRecord(folder, overwrite=True)
    record.start(net.identity())

    @torch.no_grad()
    def network() -> None:
        net.model.predict_scores(inputs)

    def predict() -> None:
        for _, error in predict_images(net, [source], files, record, metadata):
            if error is not None:
                raise error

    return {"network": network, "predict": predict}


def main() -> int:
    parser = arguments(__doc__)
    args = parser.parse_args()
    one_thread()
    rows, missed = [], False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        classes = load_cfg(str(CONFIG / "cdgcnet_r50_os8_cpu.yaml")).MODEL.SEM_SEG_HEAD.NUM_CLASSES
        MetadataCatalog.get("bench_predict").set(
            stuff_classes=[f"class {i}" for i in range(classes)], stuff_colors=[]
        )
        small, large = photo(folder / "small.jpg", SMALL), photo(folder / "large.jpg", LARGE)
        for title, source, min_size in (
            ("480 × 360", small, 0),
            ("20 megapixels, network at 512", large, 512),
            ("20 megapixels, network at 768", large, 768),
        ):
            try:
                net = predictor(folder, min_size)
                times = measure(contestants(net, source, folder), rounds=args.rounds)
            except Unsteady as error:
                rows.append([title, "–", f"≤ {LIMIT:g}", f"not measured: {error}"])
                continue
            rows.append(claim(title, times.ratio("predict", "network") - 1, LIMIT))
            missed |= "missed" in rows[-1][-1]
    report(
        "bench_predict",
        "Label maps and overlays: CPU time beyond the network's",
        ["image", "time beyond the network / time of the network", "target", "verdict"],
        rows,
        args.output,
    )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
