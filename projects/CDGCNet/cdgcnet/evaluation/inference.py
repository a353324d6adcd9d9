"""Runs any segmentor in Detectron2's evaluation loop."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from cdgcnet.modeling.postprocessing import best_class
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind


@runtime_checkable
class PredictsLabels(Protocol):
    """A segmentor that makes label maps without full-size scores."""

    def __call__(self, batched_inputs: list[dict]) -> list[dict]: ...

    def predict_labels(self, batched_inputs: list[dict]) -> list[LabelPrediction]: ...


class EvaluationOutput(dict):
    """A model's output for one image.

    Evaluators of CDGCNet read ``prediction``. For all others ``output["sem_seg"]`` holds the
    model's scores (M, H, W), as in Detectron2. They are computed when they are first asked for,
    by a second forward pass, because the label maps are made without them.
    """

    def __init__(
        self,
        prediction: LabelPrediction,
        model: Callable[[list[dict]], list[dict]],
        inputs: dict,
    ):
        super().__init__()
        self.prediction = prediction
        self._model = model
        self._inputs = inputs

    def __missing__(self, key: str) -> Any:
        if key != "sem_seg":
            raise KeyError(key)
        self[key] = self._model([self._inputs])[0][key]
        return self[key]


class EvaluatedSegmentor(nn.Module):
    """Wraps a segmentor for ``inference_on_dataset``.

    It asks for label maps where the segmentor can make them, passes the ground truth on where an
    oracle prediction is wanted, and gives inputs without an image an empty output.
    """

    def __init__(self, model: nn.Module, oracle: bool = False):
        """
        Args:
            model: a segmentor of CDGCNet or Detectron2, possibly wrapped for several GPUs.
            oracle: pass the ground truth on, for a prediction with it as the graph's classes.
        """
        super().__init__()
        self.model = getattr(model, "module", model)  # evaluation needs no gradient averaging
        self.oracle = oracle
        self.train(self.model.training)  # inference_on_dataset restores this mode

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        usable = [x for x in batched_inputs if "unusable" not in x]
        outputs = iter(self._predict(usable) if usable else [])
        return [{} if "unusable" in x else next(outputs) for x in batched_inputs]

    def _predict(self, inputs: list[dict]) -> list[dict]:
        if not isinstance(self.model, PredictsLabels):
            return self.model(inputs)
        with_truth = [
            {**x, "oracle_sem_seg": x["ground_truth"]} if self.oracle and "ground_truth" in x else x
            for x in inputs
        ]
        predictions = self.model.predict_labels(with_truth)
        return [
            EvaluationOutput(prediction, self.model, x)
            for prediction, x in zip(predictions, inputs, strict=True)
        ]


def label_prediction_of(output: LabelPrediction | dict, num_classes: int) -> LabelPrediction:
    """The label maps in a segmentor's output for one image.

    Args:
        output: label maps, or a dict with logits or probabilities "sem_seg" (M, H, W).
        num_classes: M.

    Raises:
        ValueError: if "sem_seg" has another number of classes.
    """
    if isinstance(output, LabelPrediction):
        return output
    if isinstance(output, EvaluationOutput):
        return output.prediction
    scores = output["sem_seg"]
    if len(scores) != num_classes:
        raise ValueError(f'"sem_seg" has {len(scores)} classes; expected {num_classes}')
    return LabelPrediction({PredictionKind.REFINED: best_class(scores)})


def arrays_of(prediction: LabelPrediction) -> dict[PredictionKind, np.ndarray]:
    """Label maps (H, W) uint8 on the CPU."""
    return {kind: x.to("cpu", torch.uint8).numpy() for kind, x in prediction.labels.items()}


class FailedImages(DatasetEvaluator):
    """Keeps images that could not be read away from an evaluator, and remembers them.

    Attributes:
        failed: (file name, message); of all processes after :meth:`evaluate`.
    """

    def __init__(self, evaluator: DatasetEvaluator):
        self.evaluator = evaluator
        self.failed: list[tuple[str, str]] = []

    def reset(self) -> None:
        self.failed = []
        self.evaluator.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        self.failed += [(x["file_name"], x["unusable"]) for x in inputs if "unusable" in x]
        read = [(x, y) for x, y in zip(inputs, outputs, strict=True) if "unusable" not in x]
        if read:
            self.evaluator.process([x for x, _ in read], [y for _, y in read])

    def evaluate(self) -> Any:
        self.failed = sorted(pair for part in comm.all_gather(self.failed) for pair in part)
        return self.evaluator.evaluate()

    def raise_on_failed_images(self, dataset_name: str) -> None:
        """End an evaluation in which images could not be read, on all processes.

        Raises:
            ValueError: with the number of these images and the first messages.
        """
        if self.failed:
            raise ValueError(
                f"dataset {dataset_name}: {len(self.failed)} images could not be evaluated:\n  "
                + "\n  ".join(message for _, message in self.failed[:5])
                + ("\n  …" if len(self.failed) > 5 else "")
            )
