"""Training hooks that Detectron2 does not have."""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.engine.hooks import EvalHook, PeriodicWriter
from detectron2.evaluation import inference_context
from detectron2.utils.events import EventWriter
from torch import nn

from cdgcnet.checkpoint.reading import load_torch
from cdgcnet.data.decoding import NO_LIMIT
from cdgcnet.data.evaluation_mapper import build_evaluation_mapper, read_ground_truth
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.engine.checkpointer import open_atomically
from cdgcnet.modeling.predictions import PredictionKind, predict_labels
from cdgcnet.visualization.colors import class_colors, color_map

_SAMPLES = 4  # images that SamplePredictions shows


class SmoothingHistory(HookBase):
    """Stores the last values of every smoothed scalar in the checkpoint.

    ``metrics.json`` holds medians over the last iterations. With their values a resumed run
    writes the same medians as the uninterrupted one. Clock times are left out.
    """

    def __init__(self, window: int = 20):
        """
        Args:
            window: number of values that Detectron2's writers smooth over.
        """
        self.window = window
        self._loaded: dict[str, list[tuple[float, int]]] = {}

    def state_dict(self) -> dict:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: [(float(value), int(i)) for value, i in history.values()[-self.window :]]
            for name, history in storage.histories().items()
            if hints[name] and "time" not in name
        }

    def load_state_dict(self, state: dict) -> None:
        self._loaded = state

    def before_train(self) -> None:
        storage = self.trainer.storage
        start = storage.iter
        if start < self.trainer.max_iter:  # else there is nothing left to smooth
            for name, values in self._loaded.items():
                for value, iteration in values:
                    storage.iter = iteration
                    storage.put_scalar(name, value)
        storage.iter = start


class Evaluation(EvalHook):
    """Evaluates during and after a training run, but not after an error.

    Detectron2's hook takes a training run that fails in its last iteration for a finished one. With
    several processes the one that failed would then wait for the others forever.
    """

    def after_train(self) -> None:
        if sys.exc_info()[0] is None:
            super().after_train()


class Writing(PeriodicWriter):
    """Builds its writers, which open their files, only when the training starts.

    A run that is refused before, for example for its weights, leaves no files behind.
    """

    def __init__(self, build_writers: Callable[[], list[EventWriter]]):
        """
        Args:
            build_writers: as ``DefaultTrainer.build_writers``.
        """
        super().__init__([], period=20)
        self._build_writers = build_writers

    def before_train(self) -> None:
        self._writers = self._build_writers()


class BestModel(HookBase):
    """Saves the weights with the best score as ``model_best.pth``.

    Unlike Detectron2's ``BestCheckpointer`` it remembers the best score when a run is resumed, and
    its file never becomes the checkpoint that a run resumes from.
    """

    def __init__(self, folder: str, model: nn.Module, metric: str):
        """
        Args:
            folder: of the file.
            model: whose weights are saved.
            metric: name of the score in the event storage.
        """
        self.metric = metric
        self.path = Path(folder) / "model_best.pth"
        self.model = getattr(model, "module", model)
        self.best = float("-inf")

    def before_train(self) -> None:
        if self.trainer.start_iter and self.path.is_file():
            self.best = self._stored_score()

    def _stored_score(self) -> float:
        """
        Raises:
            ValueError: if the file is not what this hook writes.
        """
        try:
            score = load_torch(self.path, in_place=True)["mIoU"]
            if not isinstance(score, float) or not math.isfinite(score):
                raise ValueError(f"mIoU is {score!r}")
        except Exception as error:  # torch and zipfile raise many types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.path}: not the best weights of this run ({reason}). Move the file away and "
                "resume again: the best weights from here on are then saved anew."
            ) from error
        return score

    def _save_if_best(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (None, None))
        if value is None or iteration != self.trainer.storage.iter or not value > self.best:
            return
        self.best = float(value)
        state = {
            "model": self.model.state_dict(),
            "iteration": iteration,
            "mIoU": self.best,
            **self.trainer.checkpointer.metadata,
        }
        with open_atomically(self.path) as file:
            torch.save(state, file)
        logging.getLogger(__name__).info(f"Best mIoU so far {self.best:.2f}: {self.path}")

    def after_step(self) -> None:
        self._save_if_best()

    def after_train(self) -> None:
        self._save_if_best()


class SamplePredictions(HookBase):
    """Puts pictures of predictions into the event storage: image, truth, coarse and refined.

    TensorBoard shows them as Detectron2's own pictures. Predicting draws no random numbers, so the
    training continues as it would without this hook.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        dicts: Sequence[dict],
        mapper: Callable[[dict], dict[str, Any]],
        spec: LabelSpec,
        metadata: Metadata,
    ):
        """
        Args:
            period: in iterations (VIS_PERIOD).
            model: the segmentor.
            dicts: of the images, with or without ground truth.
            mapper: makes the network's input of such a dict; for a broken file it returns
                "unusable", as :class:`.EvaluationMapper` does.
            spec: of the ground truth.
            metadata: provides class colors.
        """
        self.period = period
        self.model = getattr(model, "module", model)
        self.dicts = dicts
        self.mapper = mapper
        self.spec = spec
        self.colors = class_colors(metadata)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> "SamplePredictions":
        """A hook that shows the first images of the first test set every VIS_PERIOD iterations."""
        dataset = cfg.DATASETS.TEST[0]
        return cls(
            cfg.VIS_PERIOD,
            model,
            DatasetCatalog.get(dataset)[:_SAMPLES],
            build_evaluation_mapper(cfg),
            LabelSpec.from_config(cfg),
            MetadataCatalog.get(dataset),
        )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period and done != self.trainer.max_iter:
            return
        with inference_context(self.model), torch.no_grad():
            for i, dataset_dict in enumerate(self.dicts):
                inputs = self.mapper(dict(dataset_dict))
                if "unusable" in inputs:
                    logging.getLogger(__name__).warning(
                        f"No picture of a prediction: {inputs['unusable']}"
                    )
                    continue
                picture = self._picture(dataset_dict, inputs).transpose(2, 0, 1)
                self.trainer.storage.put_image(f"predictions/{i}", picture)

    def _picture(self, dataset_dict: dict, inputs: dict[str, Any]) -> np.ndarray:
        """Panels side by side, (H, n * W, 3) RGB."""
        [prediction] = predict_labels(self.model, [inputs])
        labels = {kind: x.cpu().numpy() for kind, x in prediction.labels.items()}
        panels = [read_image(dataset_dict["file_name"], max_pixels=NO_LIMIT)]
        if "sem_seg_file_name" in dataset_dict:
            size = labels[PredictionKind.REFINED].shape
            found = read_ground_truth(dataset_dict, (size[0], size[1]), self.spec, NO_LIMIT)
            panels.append(color_map(found["ground_truth"].numpy(), self.colors))
        for kind in (PredictionKind.COARSE, PredictionKind.REFINED):
            if kind in labels:
                panels.append(color_map(labels[kind], self.colors))
        return np.hstack(panels)
