"""Detectron2's trainer with our loader, evaluation, learning rates and exact resume."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from cdgcnet.checkpoint.class_metadata import class_dependent_tensors, class_metadata
from cdgcnet.checkpoint.strict_checkpointer import local_file
from cdgcnet.checkpoint.timm_weights import load_timm_weights
from cdgcnet.config.rules import TIMM
from cdgcnet.config.validation import check_starting_weights, check_training
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.evaluation_mapper import build_evaluation_mapper
from cdgcnet.data.train_loader import TrainLoader, stream_seed
from cdgcnet.engine.checkpointer import RunCheckpointer
from cdgcnet.engine.hooks import BestModel, Evaluation, SamplePredictions, SmoothingHistory, Writing
from cdgcnet.engine.optimizer import build_optimizer
from cdgcnet.engine.wandb_writer import WandbWriter
from cdgcnet.evaluation.testing import (
    TTA_SUFFIX,
    build_evaluator,
    evaluate_dataset,
    evaluation_folder,
    one_per_dataset,
)
from cdgcnet.modeling.precision import has_bfloat16, training_precision
from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA
from cdgcnet.utils.progress import progress


class Trainer(DefaultTrainer):
    """``DefaultTrainer`` for CDGCNet.

    The randomness of an iteration (samples, augmentation, dropout, node sampling) depends on the
    run's seed, the process and the iteration number alone, so a run resumed with the same number
    of processes repeats the uninterrupted one (on a GPU up to its non-deterministic kernels).

    Attributes:
        on_results: called with a dataset's name and results at the end of the training, see
            :meth:`test`.
    """

    def __init__(self, cfg: CfgNode, evaluators: Sequence[DatasetEvaluator] | None = None):
        """
        Args:
            cfg: of the run.
            evaluators: used by the evaluations during and after training, see :meth:`test`.

        Raises:
            ValueError: if the number of evaluators is not that of the datasets, or if the config
                cannot be trained on this device or in this number of processes.
        """
        check_training(cfg)
        # Weights that are evaluated during training exist only then: such an evaluation cannot
        # be resumed.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.RESUME = False
        cfg.freeze()
        self.run_seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.evaluators = one_per_dataset(evaluators, cfg.DATASETS.TEST)
        self.on_results: Callable[[str, dict], None] | None = None
        # The work of DefaultTrainer.__init__, which cannot train in several processes on CPUs and
        # leaves no room for another checkpointer.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        devices = {} if cfg.MODEL.DEVICE != "cpu" else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        amp = cfg.SOLVER.AMP
        if training_precision(cfg) == "bf16" and not has_bfloat16(cfg.MODEL.DEVICE):
            logging.getLogger(__name__).warning(
                f"SOLVER.AMP.PRECISION bf16: this {cfg.MODEL.DEVICE} has no bfloat16 instructions, "
                "so the training is slower than with SOLVER.AMP.ENABLED False."
            )
        step = AMPTrainer if amp.ENABLED and amp.PRECISION == "fp16" else SimpleTrainer
        self._trainer = step(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        state = weakref.proxy(self)
        self.checkpointer = RunCheckpointer(model, cfg.OUTPUT_DIR, trainer=state)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, with ours among them."""
        cfg, model = self.cfg, self._trainer.model
        # Detectron2 builds the writers here, but their files must not be opened before the weights
        # have been accepted: Writing builds them when the training starts.
        self.build_writers = list  # type: ignore[method-assign]
        built = [SmoothingHistory(), *super().build_hooks()]
        del self.build_writers
        place = next(i for i, hook in enumerate(built) if isinstance(hook, EvalHook))
        built[place] = Evaluation(cfg.TEST.EVAL_PERIOD, self._evaluate)
        if comm.is_main_process():
            sets = cfg.DATASETS.TEST
            metric = f"{sets[0]}/sem_seg/mIoU" if len(sets) > 1 else "sem_seg/mIoU"
            ours: list[HookBase] = [BestModel(cfg.OUTPUT_DIR, model, metric)]
            if cfg.VIS_PERIOD and sets:
                ours.append(SamplePredictions.from_config(cfg, model))
            built[-1:] = [*ours, Writing(self.build_writers)]
        return built

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's writers, and :class:`.WandbWriter` if WANDB_PROJECT is set."""
        writers = super().build_writers()
        return [WandbWriter(self.cfg), *writers] if self.cfg.WANDB_PROJECT else writers

    def _evaluate(self) -> OrderedDict:
        options: dict[str, Any] = {}
        if self.evaluators is not None:
            options["evaluators"] = self.evaluators
        if self.on_results is not None and self.iter + 1 >= self.max_iter:
            options["on_results"] = self.on_results
        self._last_eval_results = self.test(self.cfg, self.model, **options)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        self.checkpointer.metadata = class_metadata(self.cfg)
        if self.cfg.MODEL.WEIGHTS_PARTIAL:
            self.checkpointer.reinitialized = class_dependent_tensors(self.cfg)
        pretrained = self.cfg.MODEL.TIMM.PRETRAINED
        starts = not (resume and self.checkpointer.has_checkpoint())
        from_timm = starts and self.cfg.MODEL.BACKBONE.NAME == TIMM and pretrained
        if from_timm:
            check_starting_weights(self.cfg)  # MODEL.WEIGHTS would be overwritten
        super().resume_or_load(resume)
        if from_timm:
            net = self.checkpointer.model.backbone.net
            load_timm_weights(net, local_file(pretrained, "MODEL.TIMM.PRETRAINED"))
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
        state["max_iter"] = self.max_iter
        state["world_size"] = comm.get_world_size()
        return state

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._trainer.load_state_dict(state["_trainer"])
        self.run_seed = state["run_seed"]
        before, now = state.get("world_size"), comm.get_world_size()
        if before not in (None, now):
            logging.getLogger(__name__).warning(
                f"The checkpoint is of a run with {before} processes; now there are {now}. The "
                f"batch of {self.cfg.SOLVER.IMS_PER_BATCH} images, their order and augmentation "
                "and the schedule stay as they are, but dropout and whatever is computed per "
                "process, such as BN and losses with MODEL.CDGC.LOSS.REDUCE process, are not "
                f"those of {before} processes."
            )
        if state.get("max_iter", self.max_iter) != self.max_iter:
            self._extend_schedule(state["max_iter"])

    def _extend_schedule(self, planned: int) -> None:
        """Follow the learning rates of a schedule of another length from here on."""
        groups = self.optimizer.param_groups
        before = max(group["lr"] for group in groups)
        if hasattr(self.scheduler, "max_iters"):  # the poly schedule has loaded the old length
            self.scheduler.max_iters = self.max_iter
        for group, rate in zip(groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
        logging.getLogger(__name__).warning(
            f"SOLVER.EXTEND_SCHEDULE: planned for {planned} iterations, SOLVER.MAX_ITER is now "
            f"{self.max_iter}. From iteration {self.iter + 1} on the learning rates are those of "
            f"{self.cfg.SOLVER.LR_SCHEDULER_NAME} over {self.max_iter} iterations: the rate jumps "
            f"from {before:.3g} to {max(group['lr'] for group in groups):.3g}. The result is not "
            f"that of a run planned for {self.max_iter} iterations from the start."
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model, with a progress bar for the windows of an image that takes long."""
        model = super().build_model(cfg)
        model.window_progress = partial(
            progress, desc="windows", unit="window", shown=comm.is_main_process()
        )
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`cdgcnet.engine.optimizer.build_optimizer`."""
        return build_optimizer(cfg, model)

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
        """Batches of one image.

        Args:
            cfg: of the evaluation.
            dataset_name: registered name.
            skip: file names of images that are left out.
        """
        dicts = [d for d in DatasetCatalog.get(dataset_name) if d["file_name"] not in skip]
        if not dicts:
            return []  # Detectron2's loader refuses an empty dataset
        return build_detection_test_loader(
            dicts, mapper=build_evaluation_mapper(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluators:
        """The evaluators of one dataset; override it to add your own.

        ``DatasetEvaluators([super().build_evaluator(cfg, name), MyEvaluator()])`` adds the tasks of
        ``MyEvaluator`` to the results.

        Args:
            cfg: of the evaluation.
            dataset_name: registered name.
            output_folder: for all files; by default OUTPUT_DIR/inference/DATASET.
        """
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
        on_results: Callable[[str, dict], None] | None = None,
    ) -> OrderedDict:
        """Evaluate a model on DATASETS.TEST.

        Args:
            cfg: of the evaluation.
            model: with its weights.
            evaluators: one per dataset, instead of those of :meth:`build_evaluator`.
            on_results: called on the main process with a dataset's name and its results as soon
                as they are known.

        Returns:
            Metrics by task, or by dataset and task if DATASETS.TEST names several.

        Raises:
            ValueError: if the number of evaluators is not that of the datasets, if a dataset
                cannot be evaluated, and at the end, naming images that could not be read.
        """
        names = cfg.DATASETS.TEST
        evaluators = one_per_dataset(evaluators, names)
        results: OrderedDict = OrderedDict()
        for i, name in enumerate(names):
            evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
            loader = partial(cls.build_test_loader, cfg, name)
            results[name] = evaluate_dataset(cfg, model, name, evaluator, loader, on_results)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
        on_results: Callable[[str, dict], None] | None = None,
    ) -> OrderedDict:
        """As :meth:`test` with test-time augmentation; the names of all tasks end with "_TTA"."""
        logging.getLogger(__name__).info("Evaluating with test-time augmentation ...")

        def with_suffix(results: dict) -> OrderedDict:
            return OrderedDict((task + TTA_SUFFIX, scores) for task, scores in results.items())

        def report_results(name: str, results: dict) -> None:
            if on_results is not None:
                on_results(name, with_suffix(results))

        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = [
                cls.build_evaluator(cfg, name, str(evaluation_folder(cfg, name, TTA_SUFFIX)))
                for name in names
            ]
        bar = partial(progress, desc="scales", unit="scale", shown=comm.is_main_process())
        wrapped = SemanticSegmentorWithTTA(cfg, model, bar)
        results = cls.test(cfg, wrapped, evaluators, report_results)
        if len(names) == 1:
            return with_suffix(results)
        return OrderedDict((name, with_suffix(scores)) for name, scores in results.items())
