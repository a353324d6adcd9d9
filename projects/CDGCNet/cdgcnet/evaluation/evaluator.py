"""Evaluation of refined, coarse and oracle predictions in one pass.

Shape shorthand: M classes, confusion (M, M) with ground truth in rows, predictions in columns.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from cdgcnet.data.datasets.cityscapes_classes import NAMES as CITYSCAPES_NAMES
from cdgcnet.data.evaluation_mapper import read_ground_truth
from cdgcnet.evaluation.cityscapes_metrics import (
    category_metrics,
    count_instances,
    instance_metrics,
)
from cdgcnet.evaluation.image_result import ImageRecord, count_image, to_sparse, total
from cdgcnet.evaluation.metrics import (
    boundary_metrics,
    graph_metrics,
    node_metrics,
    segmentation_metrics,
)
from cdgcnet.modeling.meta_arch import CDGCSegmentor
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind
from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA

# Prediction -> its task in the results.
TASKS = {
    PredictionKind.REFINED: "sem_seg",
    PredictionKind.COARSE: "sem_seg_coarse",
    PredictionKind.ORACLE: "sem_seg_oracle",
}


def predictions_of(
    output: LabelPrediction | dict, num_classes: int
) -> dict[PredictionKind, np.ndarray]:
    """The label maps in a segmentor's output for one image.

    Args:
        output: label maps, or "sem_seg" (M, H, W) logits or probabilities.
        num_classes: M.

    Returns:
        (H, W) uint8 per kind, as far as there are.

    Raises:
        ValueError: if "sem_seg" has another number of classes.
    """
    if isinstance(output, LabelPrediction):
        return {
            kind: labels.to("cpu", torch.uint8).numpy() for kind, labels in output.labels.items()
        }
    scores = output["sem_seg"]
    if len(scores) != num_classes:
        raise ValueError(f'"sem_seg" has {len(scores)} classes; expected {num_classes}')
    return {PredictionKind.REFINED: scores.max(dim=0).indices.to("cpu", torch.uint8).numpy()}


class CDGCEvaluator(DatasetEvaluator):
    """mIoU and its relatives of every prediction a model gives, and what the graph changed.

    Understands the label maps of :class:`CDGCSegmentor` and the "sem_seg" logits or probabilities
    of any Detectron2 segmentor. Works on CPU and over several processes; all counts are whole
    numbers, so the scores do not depend on how images are shared out.

    Attributes:
        records: this process's images; on the main process, after :meth:`evaluate`, all images,
            sorted by file name.
        unusable: (file name, message) of images that could not be read, likewise.
    """

    def __init__(
        self,
        dataset_name: str,
        num_classes: int,
        ignore_label: int = 255,
        *,
        boundary_ratio: float = 0.0,
        labeled: bool = True,
        earlier: Sequence[ImageRecord] = (),
        finish: Callable[[ImageRecord, dict[str, np.ndarray]], None] | None = None,
    ):
        """
        Args:
            dataset_name: registered name; gives the class names.
            num_classes: M of the model.
            ignore_label: left out of every score.
            boundary_ratio: width of the boundary as a share of the diagonal; 0: no boundary IoU.
            labeled: False for a set without ground truth, which has no scores.
            earlier: images of an interrupted evaluation, on the main process.
            finish: called with each image's record and label maps.
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
        self.boundary_ratio = boundary_ratio
        self.labeled = labeled
        self.earlier = earlier
        self.finish = finish
        self.reset()

    def reset(self) -> None:
        self.records: list[ImageRecord] = list(self.earlier)
        self.unusable: list[tuple[str, str]] = []

    def process(self, inputs: list[dict], outputs: list[LabelPrediction | dict]) -> None:
        """Count one batch; ground truth is in the inputs, or read from "sem_seg_file_name"."""
        for x, output in zip(inputs, outputs, strict=True):
            if "unusable" in x:
                self.unusable.append((x["file_name"], x["unusable"]))
                continue
            predictions = predictions_of(output, self.num_classes)
            record = ImageRecord(x["file_name"])
            if self.labeled:
                self._count(record, x, predictions)
            if isinstance(output, LabelPrediction) and output.node_counts is not None:
                record.counts["nodes"] = to_sparse(output.node_counts.cpu().numpy())
            if self.finish is not None:
                self.finish(record, predictions)
            self.records.append(record)

    def _count(self, record: ImageRecord, x: dict, predictions: dict[str, np.ndarray]) -> None:
        size = predictions["refined"].shape
        truth: dict[str, Any] = x
        if "ground_truth" not in x:
            if "sem_seg_file_name" not in x:
                raise ValueError(
                    f"{x['file_name']}: {self.dataset_name} has no ground truth to evaluate on"
                )
            truth = read_ground_truth(x, (size[0], size[1]), self.num_classes, self.ignore_label)
        labels = truth["ground_truth"].numpy()
        if labels.shape != size:
            raise ValueError(
                f"{x['file_name']}: the prediction is {size[0]} x {size[1]}, the image "
                f"{labels.shape[0]} x {labels.shape[1]} (height x width)"
            )
        record.counts |= count_image(
            labels, predictions, self.num_classes, self.ignore_label, self.boundary_ratio
        )
        if "instance_ids" in truth and self.names == CITYSCAPES_NAMES:
            instances = truth["instance_ids"].numpy()
            record.instances = {
                name: count_instances(instances, prediction).tolist()
                for name, prediction in predictions.items()
            }

    def evaluate(self) -> OrderedDict | None:
        """Metrics by task on the main process, None elsewhere; no task for sets without labels.

        Tasks are "sem_seg", "sem_seg_coarse", "sem_seg_oracle" and "graph", what it changed.
        """
        comm.synchronize()
        gathered = comm.gather((self.records, self.unusable))
        if not comm.is_main_process():
            return None
        self.records = sorted((r for part, _ in gathered for r in part), key=lambda r: r.file_name)
        self.unusable = sorted(u for _, part in gathered for u in part)
        results = OrderedDict()
        for name, task in TASKS.items():
            if self.total(name) is not None:
                results[task] = self._metrics(name)
        graph = self._graph()
        if graph and results:
            results["graph"] = graph
        return results

    def total(self, name: str) -> np.ndarray | None:
        """A count summed over the records that have it (:class:`ImageRecord`); None if none."""
        parts = [r.counts[name] for r in self.records if name in r.counts]
        return total(parts) if parts else None

    def _metrics(self, name: str) -> dict[str, float]:
        confusion = self.total(name)
        assert confusion is not None
        metrics = segmentation_metrics(confusion, self.names)
        boundary = self.total(f"boundary_{name}")
        if boundary is not None:
            metrics |= boundary_metrics(boundary, self.names)
        if self.names == CITYSCAPES_NAMES:
            metrics |= category_metrics(confusion)
            # Without the instances of all images iIoU would be that of some.
            if all(name in r.instances for r in self.records):
                rows = [row for r in self.records for row in r.instances[name]]
                instances = np.array(rows, np.int64).reshape(-1, 4)
                metrics |= instance_metrics(confusion, instances)
        return metrics

    def _graph(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        fixed, broken = self.total("fixed"), self.total("broken")
        if fixed is not None and broken is not None:
            refined = self.total("refined")
            assert refined is not None
            metrics |= graph_metrics(refined, fixed, broken, self.names)
        nodes = self.total("nodes")
        if nodes is not None:
            parts = [r.counts["nodes"] for r in self.records if "nodes" in r.counts]
            images = np.zeros(self.num_classes, np.int64)
            for part in parts:
                images[part.place] += 1
            metrics |= node_metrics(nodes, images, len(parts), self.names)
        return metrics


class LabelOutput(nn.Module):
    """Any segmentor, for Detectron2's evaluation loop: ours answers with label maps.

    Inputs without an image, from ``EvaluationMapper``, get no output.
    """

    def __init__(self, model: nn.Module, oracle: bool = False):
        """
        Args:
            model: a segmentor of ours or of Detectron2, perhaps wrapped for several GPUs.
            oracle: hand the ground truth over, for a prediction with it as the graph's classes.
        """
        super().__init__()
        self.model = getattr(model, "module", model)  # evaluation needs no gradient averaging
        self.oracle = oracle
        self.train(self.model.training)  # Detectron2's evaluation loop restores this mode

    def forward(self, batched_inputs: list[dict]) -> list[LabelPrediction | dict]:
        usable = [x for x in batched_inputs if "unusable" not in x]
        if self.oracle:
            usable = [
                {**x, "oracle_sem_seg": x["ground_truth"]} if "ground_truth" in x else x
                for x in usable
            ]
        outputs = iter(self._predict(usable) if usable else [])
        return [{} if "unusable" in x else next(outputs) for x in batched_inputs]

    def _predict(self, batch: list[dict]) -> list[LabelPrediction] | list[dict]:
        if isinstance(self.model, (CDGCSegmentor, SemanticSegmentorWithTTA)):
            return self.model.predict_labels(batch)
        return self.model(batch)


def run_evaluator(
    cfg: CfgNode, model: nn.Module, loader: Iterable, evaluator: CDGCEvaluator
) -> OrderedDict:
    """Run a model over a test loader; {} on processes other than the main one."""
    wrapped = LabelOutput(model, cfg.TEST.ORACLE)
    return inference_on_dataset(wrapped, loader, evaluator) or OrderedDict()


def raise_on_failed_images(evaluator: CDGCEvaluator) -> None:
    """End an evaluation in which images could not be read, on all processes.

    Raises:
        ValueError: with their number and the first messages.
    """
    unusable = comm.all_gather(evaluator.unusable if comm.is_main_process() else None)[0]
    if unusable:
        raise ValueError(
            f"dataset {evaluator.dataset_name}: {len(unusable)} images could not be evaluated:\n  "
            + "\n  ".join(message for _, message in unusable[:5])
            + ("\n  …" if len(unusable) > 5 else "")
        )


def evaluate(cfg: CfgNode, model: nn.Module, loader: Iterable, dataset_name: str) -> OrderedDict:
    """The scores of a model on a test loader, no files; {} on all but the main process.

    Raises:
        ValueError: after all images, naming those that could not be read.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    evaluator = CDGCEvaluator(
        dataset_name, head.NUM_CLASSES, head.IGNORE_VALUE, boundary_ratio=cfg.TEST.BOUNDARY_RATIO
    )
    results = run_evaluator(cfg, model, loader, evaluator)
    raise_on_failed_images(evaluator)
    return results
