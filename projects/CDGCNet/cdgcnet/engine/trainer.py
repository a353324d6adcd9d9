"""Detectron2's trainer with our loader, evaluation, learning rates and exact resume."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn

from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.evaluation_mapper import build_evaluation_mapper
from cdgcnet.data.train_loader import TrainLoader, stream_seed
from cdgcnet.evaluation.testing import TTA_SUFFIX, evaluate_and_write
from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA


class BestModel(HookBase):
    """Keeps the weights of the best refined mIoU (of the first test set) as ``model_best.pth``.

    Unlike Detectron2's ``BestCheckpointer`` it remembers the best score over a resume and does
    not become the checkpoint that a run resumes from.
    """

    def __init__(self, folder: str, model: nn.Module, metric: str):
        """
        Args:
            folder: where the file goes.
            model: whose weights are kept.
            metric: name of the score in the event storage.
        """
        self.metric = metric
        self.path = Path(folder) / "model_best.pth"
        self.model = getattr(model, "module", model)
        self.best = float("-inf")

    def before_train(self) -> None:
        if self.trainer.start_iter and self.path.is_file():
            self.best = torch.load(self.path, map_location="cpu", weights_only=True)["mIoU"]

    def _keep(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self.metric, (None, None))
        if value is None or iteration != self.trainer.storage.iter or not value > self.best:
            return
        self.best = float(value)
        tmp_path = self.path.with_suffix(".pth.part")
        state = {"model": self.model.state_dict(), "iteration": iteration, "mIoU": self.best}
        torch.save(state, tmp_path)
        tmp_path.replace(self.path)
        logging.getLogger(__name__).info(f"Best mIoU so far {self.best:.2f}: {self.path}")

    def after_step(self) -> None:
        self._keep()

    def after_train(self) -> None:
        self._keep()


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for CDGCNet.

    The randomness of an iteration (samples, augmentation, dropout, node sampling) depends on the
    run's seed, the process and the iteration number alone, so a run resumed with the same number
    of processes repeats the uninterrupted one (on a GPU up to its non-deterministic kernels).
    """

    def __init__(self, cfg: CfgNode):
        # The weights of an evaluation in training exist once: there is nothing to go on with.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.RESUME = False
        cfg.freeze()
        self.run_seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        super().__init__(cfg)

    def build_hooks(self) -> list:
        # DefaultTrainer has just made a checkpointer; ours must be there before hooks take it.
        self.checkpointer = StrictCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        built = [h for h in super().build_hooks() if h is not None]
        if comm.is_main_process():
            after_eval = 1 + next(i for i, h in enumerate(built) if isinstance(h, hooks.EvalHook))
            sets = self.cfg.DATASETS.TEST
            metric = f"{sets[0]}/sem_seg/mIoU" if len(sets) > 1 else "sem_seg/mIoU"
            built.insert(after_eval, BestModel(self.cfg.OUTPUT_DIR, self._trainer.model, metric))
        return built

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        loader = self._trainer.data_loader
        loader.start_iter = self.start_iter
        loader.seed = self.run_seed

    def before_step(self) -> None:
        super().before_step()
        torch.manual_seed(stream_seed(self.run_seed, comm.get_rank(), self.iter))

    def state_dict(self) -> dict:
        # Detectron2 v0.6 leaves the optimizer out of DefaultTrainer's state.
        state = super().state_dict()
        state["_trainer"] = self._trainer.state_dict()
        state["run_seed"] = self.run_seed
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])
        self.run_seed = state["run_seed"]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """SGD (the paper's) or AdamW; the head's rate is BASE_LR * HEAD_LR_FACTOR."""
        params = []
        for part, factor in (
            (model.backbone, 1.0),
            (model.sem_seg_head, cfg.SOLVER.HEAD_LR_FACTOR),
        ):
            params += get_default_optimizer_params(
                part,
                base_lr=cfg.SOLVER.BASE_LR * factor,
                weight_decay=cfg.SOLVER.WEIGHT_DECAY,
                weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
                bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
                weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            )
        if cfg.SOLVER.OPTIMIZER == "ADAMW":
            return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
                params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
            )
        return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(
            params,
            lr=cfg.SOLVER.BASE_LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        )

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        world_size = comm.get_world_size()
        if cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a multiple of the "
                f"{world_size} processes"
            )
        return TrainLoader(
            [d for name in cfg.DATASETS.TRAIN for d in DatasetCatalog.get(name)],
            SemSegMapper(cfg, is_train=True),
            batch_size=cfg.SOLVER.IMS_PER_BATCH // world_size,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            rank=comm.get_rank(),
            world_size=world_size,
        )

    @classmethod
    def build_test_loader(
        cls, cfg: CfgNode, dataset_name: str, skip: Collection[str] = ()
    ) -> Iterable:
        """Batches of one image, without those of the file names in ``skip``."""
        dicts = [d for d in DatasetCatalog.get(dataset_name) if d["file_name"] not in skip]
        if not dicts:
            return []  # Detectron2's loader refuses an empty set
        return build_detection_test_loader(
            dicts, mapper=build_evaluation_mapper(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> OrderedDict:
        """Metrics by task, or by dataset and task if DATASETS.TEST names several."""
        return cls._evaluate(cfg, model)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> OrderedDict:
        """As :meth:`test` with test-time augmentation; task names end with "_TTA"."""
        logging.getLogger(__name__).info("Evaluating with test-time augmentation ...")
        return cls._evaluate(cfg, SemanticSegmentorWithTTA(cfg, model), TTA_SUFFIX)

    @classmethod
    def _evaluate(cls, cfg: CfgNode, model: nn.Module, suffix: str = "") -> OrderedDict:
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            loader = partial(cls.build_test_loader, cfg, name)
            results[name] = evaluate_and_write(cfg, model, name, loader, suffix)
        return next(iter(results.values())) if len(results) == 1 else results
