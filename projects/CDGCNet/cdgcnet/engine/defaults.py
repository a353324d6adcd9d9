"""What ``cdgcnet train`` and ``eval`` do: set up, train or evaluate, write the results."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn

from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer, check_weights_path
from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.identity import run_differences
from cdgcnet.config.validation import adapt_cfg
from cdgcnet.data.datasets import register_all, register_folders
from cdgcnet.data.preflight import check_data, check_datasets
from cdgcnet.engine.results_file import ResultsFile
from cdgcnet.engine.trainer import Trainer
from cdgcnet.evaluation.testing import TTA_SUFFIX, check_test_set, evaluation_folder


def check_output_dir(cfg: CfgNode, resume: bool) -> None:
    """Refuse to train into the folder of another run.

    Raises:
        ValueError: naming the folder and what was found in it, or the keys that differ.
    """
    folder = Path(cfg.OUTPUT_DIR)
    found = sorted(
        p.name
        for pattern in ("config.yaml", "metrics.json", "last_checkpoint", "*.pth")
        for p in folder.glob(pattern)
        if p.stat().st_size  # a start that failed leaves an empty metrics.json
    )
    if not found:
        return
    if not resume:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds another run ({', '.join(found[:4])}); nothing was changed. "
            "Continue that run with --resume, or choose another OUTPUT_DIR."
        )
    if "config.yaml" not in found:
        raise ValueError(
            f"OUTPUT_DIR {folder} has {', '.join(found[:4])} but no config.yaml, so it cannot be "
            "told whether it is this run; choose another OUTPUT_DIR"
        )
    different = run_differences((folder / "config.yaml").read_text(encoding="utf-8"), cfg)
    if different:
        raise ValueError(
            f"--resume: OUTPUT_DIR {folder} holds a run with another config; nothing was changed:"
            "\n  " + "\n  ".join(different[:10]) + "\nUse the same config, or another OUTPUT_DIR "
            "with MODEL.WEIGHTS set to a checkpoint of that run."
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """A checked and frozen config; logging, seeds and the output folder are ready.

    Raises:
        ValueError, FileNotFoundError: on anything wrong that can be known beforehand.
    """
    cfg = load_cfg(args.config_file, args.opts)
    if comm.get_world_size() > 1 and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("MODEL.DEVICE is 'cpu' with several processes; expected cuda")
    register_all()
    register_folders(cfg)
    check_datasets(cfg, train=not args.eval_only)
    check_weights_path(cfg.MODEL.WEIGHTS)
    folder = Path(cfg.OUTPUT_DIR)
    if args.eval_only and not cfg.MODEL.WEIGHTS:
        if not args.resume:
            raise ValueError(
                "--eval-only needs trained weights: add MODEL.WEIGHTS FILE, or --resume for the "
                "last checkpoint of OUTPUT_DIR"
            )
        if not (folder / "last_checkpoint").is_file():
            raise ValueError(f"--eval-only --resume: OUTPUT_DIR {folder} holds no checkpoint")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"OUTPUT_DIR {folder} is a file; expected a folder")
    # Every set is looked at now: a broken validation set must not show after the training.
    names = dict.fromkeys((*(() if args.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST))
    listed = {name: DatasetCatalog.get(name) for name in names}
    for name in cfg.DATASETS.TEST:
        check_test_set(cfg, name, listed[name])
    rank = comm.get_rank()
    problem = None
    if comm.is_main_process():
        try:
            if not args.eval_only:
                check_output_dir(cfg, args.resume)
            check_data(cfg, listed)
        except ValueError as error:
            problem = str(error)
    # All processes stop together, or the others would wait for the main one.
    problem = next((p for p in comm.all_gather(problem) if p), None)
    if problem:
        raise ValueError(problem)
    resumes = args.resume and (folder / "last_checkpoint").is_file()
    from_scratch = not (args.eval_only or resumes or cfg.MODEL.WEIGHTS)
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    if from_scratch and freeze_at:
        raise ValueError(
            f"MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is {freeze_at}, which would "
            "freeze random weights; name a weight file or set FREEZE_AT to 0"
        )
    if comm.is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
    setup_logger(str(folder), distributed_rank=rank, name="fvcore")
    for name in ("detectron2", "cdgcnet"):
        setup_logger(str(folder), distributed_rank=rank, name=name)
    logger = logging.getLogger("cdgcnet")
    adapt_cfg(cfg)
    cfg.freeze()
    logger.info(f"Environment:\n{collect_env_info()}")
    logger.info(f"Command line: {args}")
    if not args.eval_only:
        if from_scratch:
            logger.warning("MODEL.WEIGHTS is empty: the backbone starts from random weights")
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    return cfg


def load_for_evaluation(cfg: CfgNode, resume: bool = False) -> nn.Module:
    """A model with trained weights: MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR."""
    model = Trainer.build_model(cfg)
    checkpointer = StrictCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.allow_backbone_only = False
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return model


def predict_test_set(cfg: CfgNode) -> Path:
    """Write the label maps of DATASETS.TEST, one set, with TTA if TEST.AUG.ENABLED.

    Returns:
        The folder that :func:`cdgcnet.evaluation.writers.label_paths` starts from.
    """
    model = load_for_evaluation(cfg)
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
        eval_only: evaluate MODEL.WEIGHTS, or the last checkpoint of OUTPUT_DIR with ``resume``.
        resume: continue the training in OUTPUT_DIR.
        trainer_class: trains and evaluates; may add evaluators.
        evaluators: one per dataset instead of the trainer's, see :meth:`Trainer.test`.

    Returns:
        Metrics by task, with "_TTA" tasks if TEST.AUG.ENABLED, or by dataset and task if there are
        several datasets; {} on all but the main process.
    """
    results = ResultsFile(Path(cfg.OUTPUT_DIR) / "results.json", cfg.DATASETS.TEST)
    if eval_only:
        model = load_for_evaluation(cfg, resume)
        trainer_class.test(cfg, model, evaluators, on_results=results.add)
    else:
        trainer = trainer_class(cfg, evaluators)
        trainer.on_results = results.add
        trainer.resume_or_load(resume=resume)
        # Only now, when data, model and weights are known to fit: a failed start must not make
        # the folder look like a run.
        if comm.is_main_process():
            path = Path(cfg.OUTPUT_DIR) / "config.yaml"
            path.write_text(cfg.dump(), encoding="utf-8")
            logging.getLogger(__name__).info(f"Full config: {path}")
        trainer.train()
        model = trainer.model
    if cfg.TEST.AUG.ENABLED:
        trainer_class.test_with_TTA(cfg, model, on_results=results.add)
    if not comm.is_main_process():
        return {}
    results.log()
    return results.content()
