"""Training hooks that Detectron2 does not have."""

import logging
from pathlib import Path

import torch
from detectron2.engine import HookBase
from torch import nn

from cdgcnet.utils.io import atomic_write


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
        state = {"model": self.model.state_dict(), "iteration": iteration, "mIoU": self.best}
        with atomic_write(self.path) as tmp_path:
            torch.save(state, tmp_path)
        logging.getLogger(__name__).info(f"Best mIoU so far {self.best:.2f}: {self.path}")

    def after_step(self) -> None:
        self._save_if_best()

    def after_train(self) -> None:
        self._save_if_best()
