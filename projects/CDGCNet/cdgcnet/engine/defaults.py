"""What ``cdgcnet train`` and ``eval`` do: set up, train or evaluate, write the results."""

import argparse
import errno
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from torch import nn

from cdgcnet.checkpoint.class_metadata import class_metadata
from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer, check_weights_path
from cdgcnet.config.adaptation import adapt_cfg, warn_of_schedule
from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.validation import check_starting_weights, check_training, value_of, weights_file
from cdgcnet.data.datasets import register_all, register_folders
from cdgcnet.data.preflight import check_data, check_datasets
from cdgcnet.engine.distributed import check_agreement, is_dead_worker, on_main_process
from cdgcnet.engine.results_file import ResultsFile
from cdgcnet.engine.run_facts import run_facts
from cdgcnet.engine.run_folder import RunFolder
from cdgcnet.engine.run_lock import check_free, hold_folder
from cdgcnet.engine.run_logging import logging_after_checks, open_log
from cdgcnet.engine.subnormals import flush_subnormals
from cdgcnet.engine.trainer import Trainer
from cdgcnet.engine.wandb_writer import check_wandb
from cdgcnet.evaluation.testing import (
    TTA_SUFFIX,
    check_test_set,
    evaluation_folder,
    one_per_dataset,
)


def _check_device(cfg: CfgNode) -> None:
    on_gpus = comm.get_world_size() > 1 and dist.get_backend() == "nccl"
    if on_gpus and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("MODEL.DEVICE is 'cpu' with several processes on GPUs; expected cuda")


def _open_folder(cfg: CfgNode) -> RunFolder:
    """OUTPUT_DIR with "~" expanded; the config is changed to match.

    Raises:
        ValueError: if it cannot be a folder.
    """
    if not cfg.OUTPUT_DIR.strip():
        raise ValueError("OUTPUT_DIR is empty; expected the folder of the run, e.g. output/my_run")
    try:
        path = Path(cfg.OUTPUT_DIR).expanduser()
        for parent in (path, *path.parents):
            if parent.exists():
                if not parent.is_dir():
                    raise ValueError(f"{parent} is a file; expected a folder")
                break
    except (RuntimeError, ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"OUTPUT_DIR {cfg.OUTPUT_DIR[:200]}: {reason}") from error
    cfg.OUTPUT_DIR = str(path)
    return RunFolder(path)


def _prepare_evaluation(cfg: CfgNode, folder: RunFolder, resume: bool) -> None:
    """Choose the weights of an evaluation, and a folder in which it disturbs no training run.

    Raises:
        ValueError: if there are no trained weights.
    """
    if resume:
        newest = folder.newest_checkpoint(say=True)
        if newest is None:
            raise ValueError(f"--eval-only --resume: OUTPUT_DIR {folder.path} holds no checkpoint")
        cfg.MODEL.WEIGHTS = str(newest.path)
    elif not weights_file(cfg):
        raise ValueError(
            "--eval-only needs trained weights: add MODEL.WEIGHTS FILE, or --resume for the last "
            "checkpoint of OUTPUT_DIR"
        )
    if folder.holds_training():
        cfg.OUTPUT_DIR = str(folder.evaluation_folder(cfg.TEST.RESUME))


def _check_data(cfg: CfgNode, eval_only: bool) -> None:
    """Look at every dataset now: a broken test set must not show up after the training."""
    train = () if eval_only else cfg.DATASETS.TRAIN
    listed = {name: DatasetCatalog.get(name) for name in (*train, *cfg.DATASETS.TEST)}
    for name in cfg.DATASETS.TEST:
        check_test_set(cfg, name, listed[name])
    on_main_process(partial(check_data, cfg, listed))


def _check_start(cfg: CfgNode, folder: RunFolder, resume: bool) -> None:
    """
    Raises:
        ValueError: for a folder that holds another run, or a MODEL.WEIGHTS that does not say what
            the training starts from.
    """
    on_main_process(partial(check_free, folder.path))
    on_main_process(partial(folder.check_start, cfg, resume))
    on_main_process(partial(check_wandb, cfg))
    if not (resume and folder.newest_checkpoint()):
        check_starting_weights(cfg)
        return
    changed = folder.config_differences(cfg)
    for key in ("MODEL.WEIGHTS", "MODEL.WEIGHTS_PARTIAL", "MODEL.TIMM.PRETRAINED"):
        if key not in changed:
            continue
        before, now = changed[key]
        if now:
            logging.getLogger(__name__).warning(
                f"{key} {now} is not read: the run in {folder.path} resumes from its newest "
                "checkpoint."
            )
        section, _, name = key.rpartition(".")
        value_of(cfg, section)[name] = before  # config.yaml keeps saying what the run started from


def copy_classes(cfg: CfgNode, train: bool) -> None:
    """Set MODEL.CLASS_NAMES and CLASS_COLORS to those of the config's datasets.

    Raises:
        ValueError: where the config already names other classes.
    """
    key = "TRAIN" if train else "TEST"
    name = cfg.DATASETS[key][0]
    metadata = MetadataCatalog.get(name)
    found, known = list(metadata.stuff_classes), list(cfg.MODEL.CLASS_NAMES)
    if known and known != found:
        i = next(i for i, (a, b) in enumerate(zip(known, found, strict=True)) if a != b)
        raise ValueError(
            f"MODEL.CLASS_NAMES are not the classes of DATASETS.{key} {name}: class {i} is "
            f"{known[i]!r} in the config and {found[i]!r} in the dataset. Use a dataset of the "
            "model's classes, or set MODEL.CLASS_NAMES []"
        )
    cfg.MODEL.CLASS_NAMES = found
    cfg.MODEL.CLASS_COLORS = [list(color) for color in metadata.get("stuff_colors", [])]


def setup(args: argparse.Namespace) -> CfgNode:
    """A checked and frozen config; logging to stdout and seeds are ready, no file is written.

    Args:
        args: "config_file", "opts", "resume" and "eval_only" of Detectron2's argument parser.

    Raises:
        ValueError, OSError: on any mistake that can be known beforehand.
    """
    flush_subnormals()
    with logging_after_checks():
        cfg = load_cfg(args.config_file, args.opts)
        _check_device(cfg)
        if not args.eval_only:
            check_training(cfg)
        register_all()
        register_folders(cfg)
        check_datasets(cfg, train=not args.eval_only)
        copy_classes(cfg, train=not args.eval_only)
        folder = _open_folder(cfg)
        if not (args.resume and folder.newest_checkpoint()):  # else no other weights are read
            check_weights_path(cfg.MODEL.WEIGHTS)
            if not args.eval_only:
                check_weights_path(cfg.MODEL.TIMM.PRETRAINED, "MODEL.TIMM.PRETRAINED")
        if comm.get_world_size() > 1:
            check_agreement(run_facts(cfg, args))
        if args.eval_only:
            _prepare_evaluation(cfg, folder, args.resume)
        _check_data(cfg, args.eval_only)
        if not args.eval_only:
            _check_start(cfg, folder, args.resume)
    logger = logging.getLogger("cdgcnet")
    adapt_cfg(cfg)
    cfg.freeze()
    logger.info(f"Environment:\n{collect_env_info()}")
    logger.info(f"Command line: {args}")
    if args.eval_only and Path(cfg.OUTPUT_DIR) != folder.path:
        logger.warning(
            f"OUTPUT_DIR {folder.path} holds a training run, which stays as it is: the evaluation "
            f"goes to {cfg.OUTPUT_DIR}"
        )
    if not args.eval_only:
        warn_of_schedule(cfg)
        pretrained = weights_file(cfg) or cfg.MODEL.TIMM.PRETRAINED
        if not pretrained and not (args.resume and folder.newest_checkpoint()):
            logger.info(f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}: training from random weights")
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    return cfg


def load_for_evaluation(cfg: CfgNode, trainer_class: type[Trainer] = Trainer) -> nn.Module:
    """A model with the trained weights of MODEL.WEIGHTS, built by a trainer's ``build_model``."""
    model = trainer_class.build_model(cfg)
    checkpointer = StrictCheckpointer(model)
    checkpointer.allow_backbone_only = False
    checkpointer.metadata = class_metadata(cfg)
    checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


@contextmanager
def _working_in(folder: RunFolder, advice: str) -> Iterator[None]:
    """Hold a run's folder, on all processes together.

    Args:
        folder: of the run.
        advice: what to do when the cause of an error is removed.

    Raises:
        BlockingIOError, ValueError: if another run holds it.
        OSError: of the block; a full disk is explained.
        ChildProcessError: if a worker of a data loader was killed.
    """
    with ExitStack() as stack:
        on_main_process(lambda: stack.enter_context(hold_folder(folder.path)))
        try:
            yield
        except (OSError, EOFError, RuntimeError) as error:
            if is_dead_worker(error):
                raise ChildProcessError(
                    "a worker process of the data loader was killed, perhaps because memory ran "
                    f"out: {advice}, with a smaller DATALOADER.NUM_WORKERS if it happens again"
                ) from error
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                name = error.filename or folder.path
                raise OSError(
                    error.errno, f"the disk is full: free some space and {advice}", str(name)
                ) from error
            raise


def predict_test_set(cfg: CfgNode) -> Path:
    """Write the label maps of DATASETS.TEST, one set, with TTA if TEST.AUG.ENABLED.

    Returns:
        The folder that :func:`cdgcnet.evaluation.writers.label_paths` starts from.
    """
    with _working_in(RunFolder(cfg.OUTPUT_DIR), "run the same command again"):
        model = load_for_evaluation(cfg)
        open_log(Path(cfg.OUTPUT_DIR))
        if cfg.TEST.AUG.ENABLED:
            Trainer.test_with_TTA(cfg, model)
        else:
            Trainer.test(cfg, model)
    [name] = cfg.DATASETS.TEST
    return evaluation_folder(cfg, name, TTA_SUFFIX if cfg.TEST.AUG.ENABLED else "") / "labels"


def run(
    cfg: CfgNode,
    *,
    eval_only: bool = False,
    resume: bool = False,
    trainer_class: type[Trainer] = Trainer,
    evaluators: Sequence[DatasetEvaluator] | None = None,
) -> dict:
    """Train and evaluate, or only evaluate; the scores go to ``OUTPUT_DIR/results.json``.

    The file is written as soon as the scores of a dataset are known, before test-time augmentation
    and before anything is drawn.

    Args:
        cfg: of :func:`setup`.
        eval_only: evaluate MODEL.WEIGHTS.
        resume: continue the training in OUTPUT_DIR.
        trainer_class: builds the model, trains and evaluates; it may add evaluators.
        evaluators: one per dataset instead of the trainer's, with and without test-time
            augmentation; see :meth:`Trainer.test`.

    Returns:
        Metrics by task, with "_TTA" tasks if TEST.AUG.ENABLED, or by dataset and task if there are
        several datasets; {} on all but the main process.

    Raises:
        ValueError, OSError: naming what a user can mend.
    """
    evaluators = one_per_dataset(evaluators, cfg.DATASETS.TEST)
    folder = RunFolder(cfg.OUTPUT_DIR)
    results = ResultsFile(folder.results, cfg.DATASETS.TEST)
    again = "run the same command again" + ("" if eval_only else " with --resume")
    with _working_in(folder, again):
        if eval_only:
            model = load_for_evaluation(cfg, trainer_class)
            open_log(folder.path)
            if comm.is_main_process():
                folder.write_config(cfg)
            trainer_class.test(cfg, model, evaluators, on_results=results.add)
        else:
            finished = on_main_process(partial(_finish_training, cfg, folder, resume))
            if finished is not None:
                open_log(folder.path)
                return finished if comm.is_main_process() else {}
            trainer = trainer_class(cfg, evaluators)
            trainer.on_results = results.add
            trainer.resume_or_load(resume=resume)
            open_log(folder.path)
            on_main_process(partial(_start_training, cfg, folder, resume))
            trainer.train()
            model = trainer.model
        if cfg.TEST.AUG.ENABLED:
            trainer_class.test_with_TTA(cfg, model, evaluators, on_results=results.add)
    if not comm.is_main_process():
        return {}
    results.log()
    return results.content()


def _finish_training(cfg: CfgNode, folder: RunFolder, resume: bool) -> dict | None:
    """The scores of a training run with nothing left to do, else None.

    Raises:
        ValueError: if another run has written to the folder since :func:`setup`.
    """
    logger = logging.getLogger(__name__)
    folder.check_start(cfg, resume)
    newest = folder.newest_checkpoint() if resume else None
    if resume and newest is None:
        logger.warning(
            f"--resume: OUTPUT_DIR {folder.path} holds no checkpoint; the training starts from "
            "the beginning"
        )
    if newest is not None and newest.iterations >= cfg.SOLVER.MAX_ITER:
        folder.complete_training(newest)
        results = folder.stored_results(cfg)
        if results is not None:
            logger.warning(
                f"The training in {folder.path} is finished and its scores are in "
                f"{folder.results}; nothing is left to do. Use --eval-only to evaluate it again, "
                "or SOLVER.EXTEND_SCHEDULE True with a larger SOLVER.MAX_ITER to train it longer."
            )
            return results
        logger.warning(f"The training in {folder.path} is finished; only its evaluation is left")
    return None


def _start_training(cfg: CfgNode, folder: RunFolder, resume: bool) -> None:
    """Turn a folder into that of this run, which passed all checks."""
    folder.prepare_training(folder.newest_checkpoint() if resume else None, cfg)
    folder.write_config(cfg)
