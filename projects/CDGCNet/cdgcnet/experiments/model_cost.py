"""The cost of a network: parameters, multiply-adds, and the time and memory its run logged.

    python -m cdgcnet.experiments.model_cost FOLDER

prints the costs of the run in FOLDER as JSON. It runs as a process of its own, because the memory
that it needs would count towards the training runs started afterwards.
"""

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cdgcnet.checkpoint.reading import load_torch
from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.identity import merge_sync_bn
from cdgcnet.data.datasets import register_all, register_folders
from cdgcnet.data.image_io import read_image


def network_cost(
    cfg: CfgNode, image: np.ndarray, weights: dict[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """Parameters, and the multiply-adds of a prediction for one image of the crop's size.

    Convolutions, matrix products and attention are counted. The graph's share depends on the class
    map (Σ n_m²), so it is only meaningful for trained weights and a real image.

    Args:
        cfg: resolved.
        image: (H, W, 3) uint8 in the order of INPUT.FORMAT; resized to the crop's size.
        weights: state dict; None counts the parameters only.

    Returns:
        "parameters" and "gflops", in 10⁹ multiply-adds.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    merge_sync_bn(cfg)
    model = build_model(cfg).eval()
    cost: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    if weights is None:
        return cost
    model.load_state_dict(weights)
    height, width = cfg.INPUT.CROP.SIZE
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    x = torch.from_numpy(resized).permute(2, 0, 1).float()
    x = ((x - model.pixel_mean) / model.pixel_std)[None]

    # The counter knows attention only by its matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.sem_seg_head.predict_logits(model.backbone(x))
    cost["gflops"] = counter.get_total_flops() / 2e9  # it counts a multiply-add as two
    return cost


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.json``, without a line that a kill cut off; [] without the file."""
    path = folder / "metrics.json"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return metrics


def logged_cost(folder: Path) -> dict[str, Any]:
    """Median seconds per iteration and the GPU's peak memory, read from the files of a run."""
    cost: dict[str, Any] = {}
    times = [line["time"] for line in read_metrics(folder) if "time" in line]
    if times:
        cost["seconds_per_iteration"] = round(statistics.median(times), 5)
    log = folder / "log.txt"
    if log.is_file():
        found = re.findall(r"max_mem: (\d+)M", log.read_text(encoding="utf-8", errors="replace"))
        if found:
            cost |= {"peak_memory": max(map(int, found)) << 20, "peak_memory_of": "GPU"}
    return cost


def run_cost(folder: Path) -> dict[str, Any]:
    """:func:`network_cost` of a finished run, on the first image of its test set.

    Args:
        folder: with ``config.yaml``; the multiply-adds need ``model_final.pth`` and the test set.
    """
    cfg = load_cfg(str(folder / "config.yaml"), ["MODEL.DEVICE", "cpu"])
    register_all()
    register_folders(cfg)
    first = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    image = read_image(first["file_name"], cfg.INPUT.FORMAT, cfg.INPUT.MAX_PIXELS)
    weights = None
    if (folder / "model_final.pth").is_file():
        file = load_torch(folder / "model_final.pth")
        weights = file["model"]
    return network_cost(cfg, image, weights)


if __name__ == "__main__":
    print(json.dumps(run_cost(Path(sys.argv[1]))))
