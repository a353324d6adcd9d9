"""One row: a head trained on cached features and scored on cached images.

The head, its losses and the evaluator are the product's own; only the backbone is replaced by the
features that it gave.
"""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from torch import Tensor

from cdgcnet.comparison.feature_cache import FeatureStore
from cdgcnet.comparison.options import Schedule
from cdgcnet.comparison.rows import Row
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.modeling.cdgc_head import CDGCNetHead
from cdgcnet.modeling.postprocessing import ResizeGeometry, label_map
from cdgcnet.modeling.precision import DTYPES
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind

_EVAL_BATCH = 8  # images of one size per forward pass
_REPORT = 20  # steps between two calls of ``progress``


def build_head(row: Row, store: FeatureStore) -> CDGCNetHead:
    """The head of a row for features of a store; its auxiliary feature is never read."""
    shape = ShapeSpec(channels=store.channels, stride=store.stride)
    return build_sem_seg_head(row.cfg, dict.fromkeys(row.cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES, shape))


class CropSampler:
    """Random crops of a store's images, half of them flipped.

    A crop of n x n nodes comes with the labels at every second kept one, from the first node to
    the last: (n-1)·s/4+1 a side at stride s.
    """

    def __init__(self, store: FeatureStore, crop: int, batch: int, seed: int):
        """
        Raises:
            ValueError: if an image has fewer nodes than a crop.
        """
        smallest = min(min(nodes) for nodes in store.nodes)
        if crop > smallest:
            raise ValueError(
                f"--crop {crop}: the smallest image has {smallest} nodes a side at stride "
                f"{store.stride}; expected at most {smallest} (or a larger --shorter-side)"
            )
        self.store, self.crop, self.batch = store, crop, batch
        self.rng = np.random.default_rng(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Features (B, C, n, n) float32 in channels-last layout, labels (B, H, W) int64."""
        n, per_node = self.crop, self.store.stride // 2
        features = np.empty((self.batch, n, n, self.store.channels), np.float16)
        targets = []
        for i, index in enumerate(self.rng.integers(len(self.store), size=self.batch)):
            x, y = self.store[index]
            top, left = (int(self.rng.integers(side - n + 1)) for side in x.shape[:2])
            x = x[top : top + n, left : left + n]
            rows, columns = (
                slice(per_node * first, per_node * (first + n - 1) + 1, 2) for first in (top, left)
            )
            y = y[rows, columns]
            if self.rng.random() < 0.5:
                x, y = x[:, ::-1], y[:, ::-1]
            features[i] = x
            targets.append(y)
        labels = torch.from_numpy(np.stack(targets)).long()
        return torch.from_numpy(features).permute(0, 3, 1, 2).float(), labels


def _resident(kind: str) -> int:
    """Bytes of this process: "RssAnon" and "RssFile" now, "VmHWM" at most; 0 where unknown."""
    path = Path("/proc/self/status")
    lines = path.read_text(encoding="ascii").splitlines() if path.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith(f"{kind}:")]
    return int(found[0]) << 10 if found else 0


class PeakMemory:
    """Bytes that a process takes at most from here on, mapped files left out."""

    def __init__(self, device: torch.device):
        self.device = device
        self.before = _resident("RssAnon")
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # On Linux, ru_maxrss starts with what the parent process had when it started this one.
        peak = _resident("VmHWM")
        if not peak:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            peak <<= 0 if sys.platform == "darwin" else 10  # bytes there, kibibytes elsewhere
        return max(0, peak - _resident("RssFile") - self.before)


def train(
    row: Row,
    store: FeatureStore,
    schedule: Schedule,
    seed: int,
    progress: Callable[[int], None] = lambda steps: None,
) -> tuple[CDGCNetHead, dict[str, Any]]:
    """Train a head.

    Args:
        row: which.
        store: of the training images.
        schedule: steps, batch, learning rate.
        seed: of weights and crops.
        progress: called with the number of steps since the last call.

    Returns:
        The head in evaluation mode; "parameters", "seconds", "cpu_seconds", "peak_memory" in
        bytes and "losses", the means of the last tenth of the steps.

    Raises:
        FloatingPointError: naming the step, if the loss is not finite.
    """
    torch.manual_seed(seed)
    device = torch.device(row.cfg.MODEL.DEVICE)
    head = build_head(row, store).to(device).to(memory_format=torch.channels_last).train()
    sampler = CropSampler(store, schedule.crop, schedule.batch, seed)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=schedule.steps
    )
    dtype = DTYPES[schedule.precision]
    last: dict[str, list[float]] = defaultdict(list)
    memory = PeakMemory(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(1, schedule.steps + 1):
        x, targets = sampler.draw()
        features = dict.fromkeys((head.aux_feature, head.main_feature), x.to(device))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            _, losses = head(features, targets.to(device))
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rates.step()
        if step > 0.9 * schedule.steps:
            for name, value in losses.items():
                last[name].append(value.item())
        if step % _REPORT == 0 or step == schedule.steps:
            progress((step - 1) % _REPORT + 1)
    cost = {
        "parameters": sum(p.numel() for p in head.parameters()),
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_memory": memory.bytes(),
        "losses": {name: round(float(np.mean(values)), 4) for name, values in last.items()},
    }
    return head.eval(), cost


@torch.inference_mode()
def evaluate(
    row: Row, head: CDGCNetHead, store: FeatureStore, dataset_name: str, precision: str
) -> dict[str, dict[str, float]]:
    """Scores of a head on whole images, at the resolution of the kept labels.

    Args:
        row: of the head.
        head: in evaluation mode.
        store: of the images to score.
        dataset_name: registered name, for the class names.
        precision: "fp32", or "bf16" for autocast.

    Returns:
        Metrics by task, see :class:`CDGCEvaluator`.
    """
    device = torch.device(row.cfg.MODEL.DEVICE)
    sem_seg = row.cfg.MODEL.SEM_SEG_HEAD
    evaluator = CDGCEvaluator(dataset_name, sem_seg.NUM_CLASSES, sem_seg.IGNORE_VALUE)
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, nodes in enumerate(store.nodes):
        by_size[nodes].append(index)
    dtype = DTYPES[precision]
    for same in by_size.values():
        for start in range(0, len(same), _EVAL_BATCH):
            chosen = same[start : start + _EVAL_BATCH]
            maps, labels = zip(*(store[index] for index in chosen), strict=True)
            x = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float().to(device)
            features = dict.fromkeys((head.aux_feature, head.main_feature), x)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                output = head.predict_logits(features)
            size = labels[0].shape
            geometry = ResizeGeometry(size, size, size, head.align_corners)
            for i, index in enumerate(chosen):
                scores = {PredictionKind.REFINED: output.refined[i]}
                if output.coarse is not None:
                    scores[PredictionKind.COARSE] = output.coarse[i]
                prediction = LabelPrediction(
                    {kind: label_map(x.float(), geometry) for kind, x in scores.items()}
                )
                truth = torch.from_numpy(np.array(labels[i]))
                evaluator.process(
                    [{"file_name": store.names[index], "ground_truth": truth}], [prediction]
                )
    results = evaluator.evaluate()
    assert results is not None  # one process
    return dict(results)
