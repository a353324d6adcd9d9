"""Sends what a training run logs to Weights & Biases, through Detectron2's ``EventWriter``."""

from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from cdgcnet.engine.run_folder import WANDB_RUN_ID


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            "WANDB_PROJECT needs Weights & Biases: pip install 'cdgcnet[wandb]', or set "
            'WANDB_PROJECT to ""'
        ) from error
    return wandb


def check_wandb(cfg: CfgNode) -> None:
    """
    Raises:
        ValueError: if WANDB_PROJECT is set and Weights & Biases is not installed.
    """
    if cfg.WANDB_PROJECT:
        _import_wandb()


class WandbWriter(EventWriter):
    """Writes scalars, smoothed as in ``metrics.json``, and pictures to one run.

    It must come before ``TensorboardXWriter`` in the list of writers, which removes the pictures
    from the storage. A resumed run continues the same one there.
    """

    def __init__(self, cfg: CfgNode, window_size: int = 20):
        """
        Args:
            cfg: WANDB_PROJECT, OUTPUT_DIR; the whole config is stored with the run.
            window_size: number of values that a scalar is smoothed over.

        Raises:
            ValueError: if Weights & Biases is not installed.
        """
        self._api = _import_wandb()
        self._window_size = window_size
        self._last_write = -1
        folder = Path(cfg.OUTPUT_DIR)
        stored = folder / WANDB_RUN_ID
        identity = stored.read_text(encoding="utf-8").strip() if stored.is_file() else None
        self._run = self._api.init(
            project=cfg.WANDB_PROJECT,
            dir=str(folder),
            id=identity,
            resume="allow",
            config=yaml.safe_load(cfg.dump()),
        )
        stored.write_text(self._run.id, encoding="utf-8")

    def write(self) -> None:
        storage = get_event_storage()
        by_step: dict[int, dict[str, Any]] = {}
        for name, (value, step) in storage.latest_with_smoothing_hint(self._window_size).items():
            if step > self._last_write:
                by_step.setdefault(step, {})[name] = value
        for name, picture, step in storage._vis_data:
            shown = self._api.Image(picture.transpose(1, 2, 0))
            by_step.setdefault(step, {})[name] = shown
        for step, values in sorted(by_step.items()):
            self._run.log(values, step=step)
        self._last_write = max([self._last_write, *by_step])

    def close(self) -> None:
        self._run.finish()
