"""Evaluation of refined and coarse predictions in one pass.

Shape shorthand: M classes, confusion (M, M) with ground truth in rows, predictions in columns.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from .files import read_checked_labels, replacing
from .segmentor import CDGCSegmentor


def confusion_matrix(
    labels: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Pixel counts (M, M): row = ground truth, column = prediction; ignored pixels left out."""
    valid = labels != ignore_label
    pairs = labels[valid].astype(np.int64) * num_classes + prediction[valid]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def segmentation_metrics(confusion: np.ndarray, names: list[str]) -> dict[str, float]:
    """Scores in percent from a confusion matrix.

    Returns:
        "mIoU": mean over the classes present in the ground truth, as Detectron2 does today.
        "mIoU_union": mean over the classes present in the ground truth or in the prediction, a
        class that is only predicted counting 0, as Detectron2 v0.6 and mmsegmentation do.
        "fwIoU", "mACC", "pACC" as Detectron2; "IoU-{name}" and "ACC-{name}" per class, NaN where
        undefined.
    """
    counts = confusion.astype(np.float64)
    hit = np.diag(counts)
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    union = truth + predicted - hit
    present = truth > 0
    nan = np.full(len(hit), np.nan)
    iou = 100 * np.divide(hit, union, out=nan.copy(), where=union > 0)
    accuracy = 100 * np.divide(hit, truth, out=nan.copy(), where=present)
    total = truth.sum()

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else math.nan

    metrics = {
        "mIoU": mean(iou[present]),
        "mIoU_union": mean(iou[union > 0]),
        "fwIoU": float((truth[present] * iou[present]).sum() / total) if total else math.nan,
        "mACC": mean(accuracy[present]),
        "pACC": float(100 * hit.sum() / total) if total else math.nan,
    }
    for name, class_iou, class_accuracy in zip(names, iou, accuracy, strict=True):
        metrics[f"IoU-{name}"] = float(class_iou)
        metrics[f"ACC-{name}"] = float(class_accuracy)
    return metrics


class CDGCEvaluator(DatasetEvaluator):
    """mIoU and its relatives of the refined and, where given, the coarse prediction.

    Understands the label maps of :class:`CDGCSegmentor` and the "sem_seg" logits or probabilities
    of any Detectron2 segmentor. Works on CPU and over several processes.
    """

    def __init__(self, dataset_name: str, num_classes: int, ignore_label: int = 255):
        """
        Args:
            dataset_name: registered name; gives the class names.
            num_classes: M of the model.
            ignore_label: left out of every score.
        """
        self.names = list(MetadataCatalog.get(dataset_name).stuff_classes)
        if len(self.names) != num_classes:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; {dataset_name} has "
                f"{len(self.names)} classes"
            )
        self.dataset_name = dataset_name
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.reset()

    def reset(self) -> None:
        shape = (self.num_classes, self.num_classes)
        self.confusion = {"refined": np.zeros(shape, np.int64)}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count one batch; ground truth is read from "sem_seg_file_name"."""
        for x, output in zip(inputs, outputs, strict=True):
            if "labels" in output:
                predictions = {"refined": output["labels"]}
                if "coarse_labels" in output:
                    predictions["coarse"] = output["coarse_labels"]
            else:
                predictions = {"refined": output["sem_seg"].max(dim=0).indices}
            path = x.get("sem_seg_file_name")
            if path is None:
                raise ValueError(
                    f"{x['file_name']}: {self.dataset_name} has no ground truth to evaluate on"
                )
            size = tuple(predictions["refined"].shape)
            labels = read_checked_labels(
                path, self.num_classes, self.ignore_label, size, x.get("sem_seg_lut")
            )
            for name, prediction in predictions.items():
                counts = confusion_matrix(
                    labels, prediction.cpu().numpy(), self.num_classes, self.ignore_label
                )
                self.confusion[name] = self.confusion.get(name, 0) + counts

    def evaluate(self) -> OrderedDict | None:
        """{"sem_seg": metrics, "sem_seg_coarse": metrics} on the main process, None elsewhere."""
        comm.synchronize()
        gathered = comm.gather(self.confusion)
        if not comm.is_main_process():
            return None
        results = OrderedDict()
        for name, task in (("refined", "sem_seg"), ("coarse", "sem_seg_coarse")):
            parts = [g[name] for g in gathered if name in g]
            if parts:
                results[task] = segmentation_metrics(sum(parts), self.names)
        return results


class _LabelOutput(nn.Module):
    """A segmentor that answers with label maps, for Detectron2's evaluation loop."""

    def __init__(self, model: CDGCSegmentor):
        super().__init__()
        self.model = model
        self.train(model.training)  # Detectron2's evaluation loop restores this mode

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        return self.model.inference(batched_inputs, output="labels")


def evaluate(cfg: CfgNode, model: nn.Module, loader: Iterable, dataset_name: str) -> OrderedDict:
    """Run a model over a test loader; {} on processes other than the main one."""
    model = getattr(model, "module", model)  # the evaluation loop needs no gradient averaging
    if isinstance(model, CDGCSegmentor):
        model = _LabelOutput(model)
    head = cfg.MODEL.SEM_SEG_HEAD
    evaluator = CDGCEvaluator(dataset_name, head.NUM_CLASSES, head.IGNORE_VALUE)
    return inference_on_dataset(model, loader, evaluator) or OrderedDict()


def format_table(results: dict[str, dict[str, float]], columns: dict[str, str]) -> str:
    """A table of IoU per class in the ground truth and mean, one column per result.

    Args:
        results: task name -> metrics.
        columns: task name -> column title; tasks without a result are left out.
    """
    columns = {task: title for task, title in columns.items() if task in results}
    keys = [k for k in next(iter(results.values())) if k.startswith("IoU-")]
    rows = [(key.removeprefix("IoU-"), key) for key in keys]
    rows += [("mean (mIoU)", "mIoU"), ("with absent (mIoU_union)", "mIoU_union")]
    width = max(len(name) for name, _ in rows)
    lines = [" " * width + "".join(f"  {title:>16}" for title in columns.values())]
    for name, key in rows:
        values = [results[task][key] for task in columns]
        if all(math.isnan(results[task].get(f"ACC-{name}", 0.0)) for task in columns):
            continue  # not in the ground truth, and so not in the mean
        cells = "".join("  " + ("-" if math.isnan(v) else f"{v:.2f}").rjust(16) for v in values)
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)


def write_results(path: Path, results: dict) -> None:
    """Write metrics as JSON (NaN becomes null), first beside, then renamed."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    with replacing(path) as beside:
        beside.write_text(json.dumps(clean(results), indent=2) + "\n", encoding="utf-8")
