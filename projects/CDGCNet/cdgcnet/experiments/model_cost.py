"""What a network costs: parameters, multiply-adds, and what its run noted of time and memory.

    python -m cdgcnet.experiments.model_cost FOLDER

prints the network's costs of the run in FOLDER as JSON. A process of its own, because the memory
that it takes would count as that of the trainings started after it.
"""

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.identity import merge_sync_bn
from cdgcnet.data.datasets import register_all, register_folders
from cdgcnet.data.image_io import read_image


def _attention_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """softmax(q kᵀ) v, (…, queries, width) each: one per multiply-add, as fvcore counts."""
    *batch, queries, width = inputs[0].type().sizes()
    keys, values = inputs[1].type().sizes()[-2], inputs[2].type().sizes()[-1]
    return int(np.prod(batch, dtype=np.int64)) * queries * keys * (width + values)


def _class_linear_flops(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Rows (K, C) times one matrix (C, D) each, of cdgc's grouped product."""
    rows, weight = (x.type().sizes() for x in inputs[:2])
    return int(rows[0]) * weight[1] * weight[2]


def network_cost(
    cfg: CfgNode, image: np.ndarray, weights: dict[str, torch.Tensor] | None = None
) -> dict[str, Any]:
    """Parameters, and multiply-adds of a prediction for one image of the crop's size.

    The graph's share depends on the class map, Σ n_m²: only trained weights and a real image give
    that of the method.

    Args:
        cfg: resolved.
        image: (H, W, 3) uint8 in the order of INPUT.FORMAT; resized to the crop's size.
        weights: state dict; None counts parameters alone.

    Returns:
        "parameters"; "gflops", multiply-adds in 10⁹; "not_counted", operators that have none by
        fvcore's rules (elementwise ones, sums, sorting) -> number of calls.
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

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model.sem_seg_head.predict_logits(self.model.backbone(x)).refined

    counted = FlopCountAnalysis(Network().eval(), (x,))
    counted.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    counted.set_op_handle("prim::PythonOp._ClassLinear", _class_linear_flops)
    counted.unsupported_ops_warnings(False)
    counted.uncalled_modules_warnings(False)
    counted.tracer_warnings("none")
    with torch.no_grad():
        cost["gflops"] = counted.total() / 1e9
    cost["not_counted"] = dict(sorted(counted.unsupported_ops().items()))
    return cost


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.json``; [] without one. A line cut off by a kill is left out."""
    path = folder / "metrics.json"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    metrics = []
    for line in lines:
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return metrics


def noted_cost(folder: Path) -> dict[str, Any]:
    """Median seconds per iteration, and the GPU's peak memory, from the files of a training."""
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
    cfg = load_cfg(
        str(folder / "config.yaml"), ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"]
    )
    register_all()
    register_folders(cfg)
    first = DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]
    image = read_image(first["file_name"], cfg.INPUT.FORMAT, cfg.INPUT.MAX_PIXELS)
    weights = None
    if (folder / "model_final.pth").is_file():
        file = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
        weights = file["model"]
    return network_cost(cfg, image, weights)


if __name__ == "__main__":
    print(json.dumps(run_cost(Path(sys.argv[1]))))
