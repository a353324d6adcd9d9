"""Evaluation of refined, coarse and oracle predictions in one pass.

Shape shorthand: M classes, confusion (M, M) with ground truth in rows, predictions in columns.
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from cdgcnet.data.datasets.cityscapes_classes import NAMES as CITYSCAPES_NAMES
from cdgcnet.data.decoding import NO_LIMIT
from cdgcnet.data.evaluation_mapper import read_ground_truth
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.evaluation.cityscapes_metrics import (
    category_metrics,
    count_instances,
    instance_metrics,
)
from cdgcnet.evaluation.image_result import ImageRecord, count_image, to_sparse, total
from cdgcnet.evaluation.inference import arrays_of, label_prediction_of
from cdgcnet.evaluation.metrics import (
    boundary_metrics,
    graph_metrics,
    node_metrics,
    segmentation_metrics,
)
from cdgcnet.evaluation.notable_images import NotableImages
from cdgcnet.evaluation.writers import rle_entries
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind

# Detectron2's task name of each prediction.
TASKS = {
    PredictionKind.REFINED: "sem_seg",
    PredictionKind.COARSE: "sem_seg_coarse",
    PredictionKind.ORACLE: "sem_seg_oracle",
}


class CDGCEvaluator(DatasetEvaluator):
    """Scores every prediction that a model makes, and what the graph changed.

    It understands the label maps of CDGCNet's segmentors and the "sem_seg" scores of any other
    Detectron2 segmentor. It works on the CPU and across several processes. All counts are whole
    numbers, so the scores do not depend on how the images are divided among the processes.

    Attributes:
        records: this process's images; after :meth:`evaluate`, on the main process, all images
            sorted by file name.
    """

    def __init__(
        self,
        dataset_name: str,
        num_classes: int,
        ignore_label: int = 255,
        *,
        boundary_ratio: float = 0.0,
        labeled: bool = True,
        output_dir: str | Path | None = None,
        worst_images: int = 0,
        draw: bool = False,
        save_rle: bool = False,
    ):
        """
        Args:
            dataset_name: registered name; gives the class names.
            num_classes: M of the model.
            ignore_label: left out of every score.
            boundary_ratio: width of the boundary as a fraction of the image's diagonal; 0 turns
                boundary IoU off.
            labeled: False for a dataset without ground truth, which gets no scores.
            output_dir: where the report on this evaluation goes; None writes no files.
            worst_images: number of worst, most fixed and most broken images to report.
            draw: draw these images and the confusion matrices.
            save_rle: keep predictions for Detectron2's ``sem_seg_predictions.json``.
        """
        self.metadata = MetadataCatalog.get(dataset_name)
        self.names = list(self.metadata.stuff_classes)
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
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.worst_images = worst_images
        self.draw = draw
        self.save_rle = save_rle
        self.reset()

    def reset(self) -> None:
        self.records: list[ImageRecord] = []
        self._notable = NotableImages(self.names, self.worst_images if self.draw else 0)

    def restore(self, records: Iterable[ImageRecord]) -> None:
        """Continue with images that an interrupted evaluation has counted."""
        for record in records:
            self._notable.add(record)
            self.records.append(record)

    def process(self, inputs: list[dict], outputs: list[LabelPrediction | dict]) -> None:
        """Count one batch.

        Args:
            inputs: "file_name" and the ground truth: "ground_truth", or "sem_seg_file_name".
            outputs: one per input, see :func:`label_prediction_of`.
        """
        for x, output in zip(inputs, outputs, strict=True):
            prediction = label_prediction_of(output, self.num_classes)
            labels = arrays_of(prediction)
            record = ImageRecord(x["file_name"])
            if self.labeled:
                self._count(record, x, labels)
            if prediction.node_counts is not None:
                record.counts["nodes"] = to_sparse(prediction.node_counts.cpu().numpy())
            if self.save_rle:
                refined = labels[PredictionKind.REFINED]
                record.rle = rle_entries(refined, record.file_name, self.metadata)
            self._notable.add(record, labels)
            self.records.append(record)

    def _count(
        self, record: ImageRecord, x: dict, predictions: dict[PredictionKind, np.ndarray]
    ) -> None:
        size = predictions[PredictionKind.REFINED].shape
        truth = x if "ground_truth" in x else self.read_ground_truth(x, (size[0], size[1]))
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
                kind.value: count_instances(instances, prediction).tolist()
                for kind, prediction in predictions.items()
            }

    def read_ground_truth(self, dataset_dict: dict, size: tuple[int, int]) -> dict[str, Any]:
        """Read "ground_truth" (H, W) and, where the dataset has them, "instance_ids" (H, W).

        Raises:
            FileNotFoundError, ValueError: naming a file that is missing or wrong, or an image
                without one.
        """
        if "sem_seg_file_name" not in dataset_dict:
            raise ValueError(
                f"{dataset_dict['file_name']}: {self.dataset_name} has no ground truth to "
                "evaluate on"
            )
        spec = LabelSpec(self.num_classes, self.ignore_label)
        return read_ground_truth(dataset_dict, size, spec, NO_LIMIT)

    def evaluate(self) -> OrderedDict | None:
        """Metrics by task on the main process, None elsewhere; no task without ground truth.

        The tasks are "sem_seg", "sem_seg_coarse", "sem_seg_oracle" and "graph", which says what
        the graph changed.
        """
        comm.synchronize()
        gathered = comm.gather(self.records)
        if not comm.is_main_process():
            return None
        self.records = sorted((r for part in gathered for r in part), key=lambda r: r.file_name)
        results = OrderedDict()
        for kind, task in TASKS.items():
            if self.total(kind.value) is not None:
                results[task] = self._metrics(kind)
        graph = self._graph()
        if graph and results:
            results["graph"] = graph
        return results

    def total(self, name: str) -> np.ndarray | None:
        """The sum of a count over the records that have it; None if there is none.

        Args:
            name: of a count in :class:`ImageRecord`.
        """
        parts = [r.counts[name] for r in self.records if name in r.counts]
        return total(parts) if parts else None

    def _metrics(self, kind: PredictionKind) -> dict[str, float]:
        confusion = self.total(kind.value)
        assert confusion is not None
        metrics = segmentation_metrics(confusion, self.names)
        boundary = self.total(f"boundary_{kind.value}")
        if boundary is not None:
            metrics |= boundary_metrics(boundary, self.names)
        if self.names == CITYSCAPES_NAMES:
            metrics |= category_metrics(confusion)
            # Without the instances of every image iIoU would cover only a part of the dataset.
            if all(kind.value in r.instances for r in self.records):
                rows = [row for r in self.records for row in r.instances[kind.value]]
                instances = np.array(rows, np.int64).reshape(-1, 4)
                metrics |= instance_metrics(confusion, instances)
        return metrics

    def _graph(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        fixed, broken = self.total("fixed"), self.total("broken")
        if fixed is not None and broken is not None:
            refined = self.total(PredictionKind.REFINED.value)
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


def find_cdgc_evaluator(evaluator: DatasetEvaluator) -> CDGCEvaluator | None:
    """The first :class:`CDGCEvaluator` in an evaluator that may combine several."""
    if isinstance(evaluator, CDGCEvaluator):
        return evaluator
    parts = getattr(evaluator, "_evaluators", ())  # Detectron2's DatasetEvaluators
    found = (find_cdgc_evaluator(part) for part in parts)
    return next((e for e in found if e is not None), None)
