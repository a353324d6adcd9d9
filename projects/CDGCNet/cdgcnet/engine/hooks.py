"""Training hooks that Detectron2 does not have."""

import logging
from pathlib import Path

import torch
from detectron2.engine import HookBase
from torch import nn

from cdgcnet.engine.checkpointer import open_atomically


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
            self.best = torch.load(self.path, map_location="cpu", weights_only=True)["mIoU"]

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
