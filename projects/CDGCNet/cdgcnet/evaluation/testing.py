"""Evaluates a model on registered datasets, the part of a trainer that Detectron2 leaves open.

Everything is written to ``OUTPUT_DIR/inference/DATASET``, or ``DATASET_TTA`` with test-time
augmentation.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from cdgcnet.config.identity import evaluation_fingerprint
from cdgcnet.evaluation.evaluator import CDGCEvaluator, find_cdgc_evaluator
from cdgcnet.evaluation.html_report.page import write_evaluation_page
from cdgcnet.evaluation.inference import EvaluatedSegmentor, FailedImages
from cdgcnet.evaluation.reporter import report
from cdgcnet.evaluation.resume import ResumableEvaluator
from cdgcnet.evaluation.writers import LabelMapWriter
from cdgcnet.utils.io import backup_existing
from cdgcnet.utils.progress import progress

TTA_SUFFIX = "_TTA"  # of folders and task names


def evaluation_folder(cfg: CfgNode, dataset_name: str, suffix: str = "") -> Path:
    """The folder of a dataset's evaluation."""
    return Path(cfg.OUTPUT_DIR) / "inference" / (dataset_name + suffix)


def check_test_set(cfg: CfgNode, name: str, dicts: Sequence[dict]) -> bool:
    """Whether a test set has labels.

    Raises:
        ValueError: for a set that cannot be evaluated: without images, with labels for only some
            of them, without labels and without a key that writes predictions, with images that
            would share a label file, or with TEST.RESUME and repeated images.
    """
    if not dicts:
        raise ValueError(f"DATASETS.TEST {name} has no images; expected one or more")
    unlabeled = [d["file_name"] for d in dicts if "sem_seg_file_name" not in d]
    if unlabeled and len(unlabeled) < len(dicts):
        raise ValueError(
            f"DATASETS.TEST {name}: {len(unlabeled)} of {len(dicts)} images have no labels, the "
            f"first is {unlabeled[0]}; add the labels or take the images out of the set"
        )
    if unlabeled and not (cfg.TEST.SAVE_LABELS or cfg.TEST.SAVE_RLE):
        raise ValueError(
            f"DATASETS.TEST {name} has no labels, so there is nothing to score. Set "
            "TEST.SAVE_LABELS True to write label maps, or make a package for a test server with "
            "`cdgcnet submit`."
        )
    if cfg.TEST.RESUME and len({d["file_name"] for d in dicts}) < len(dicts):
        raise ValueError(
            f"TEST.RESUME is True, but {name} lists an image more than once; set it to False"
        )
    if cfg.TEST.SAVE_LABELS:
        _label_writer(cfg, name, dicts, evaluation_folder(cfg, name))
    return not unlabeled


def _label_writer(cfg: CfgNode, name: str, dicts: Sequence[dict], folder: Path) -> LabelMapWriter:
    files = [d["file_name"] for d in dicts]
    return LabelMapWriter(name, files, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, folder / "labels")


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str | Path | None = None
) -> DatasetEvaluators:
    """The evaluators of a dataset, which Detectron2's ``DatasetEvaluators`` can combine with more.

    Args:
        cfg: TEST.{BOUNDARY_RATIO, WORST_IMAGES, PICTURES, SAVE_LABELS, SAVE_RLE}.
        dataset_name: registered name.
        output_folder: for all files; by default :func:`evaluation_folder`.

    Raises:
        ValueError: for a dataset that cannot be evaluated.
    """
    dicts = DatasetCatalog.get(dataset_name)
    head = cfg.MODEL.SEM_SEG_HEAD
    folder = Path(output_folder or evaluation_folder(cfg, dataset_name))
    evaluators: list[DatasetEvaluator] = []
    labeled = check_test_set(cfg, dataset_name, dicts)
    if cfg.TEST.SAVE_LABELS:  # before the counts: a counted image is finished
        evaluators.append(_label_writer(cfg, dataset_name, dicts, folder))
    evaluators.append(
        CDGCEvaluator(
            dataset_name,
            head.NUM_CLASSES,
            head.IGNORE_VALUE,
            boundary_ratio=cfg.TEST.BOUNDARY_RATIO,
            labeled=labeled,
            output_dir=folder,
            worst_images=cfg.TEST.WORST_IMAGES,
            draw=cfg.TEST.PICTURES,
            save_rle=cfg.TEST.SAVE_RLE,
        )
    )
    return DatasetEvaluators(evaluators)


def one_per_dataset(
    evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None, names: Sequence[str]
) -> Sequence[DatasetEvaluator] | None:
    """The evaluators of datasets as a list; None for the usual ones.

    Raises:
        ValueError: if they are not as many as the datasets.
    """
    if evaluators is None:
        return None
    if isinstance(evaluators, DatasetEvaluator):
        evaluators = [evaluators]
    if len(evaluators) != len(names):
        raise ValueError(
            f"{len(evaluators)} evaluators for the {len(names)} datasets of DATASETS.TEST "
            f"{list(names)}; expected one per dataset"
        )
    return evaluators


def _resumable(
    cfg: CfgNode, model: nn.Module, dataset_name: str, evaluator: DatasetEvaluator
) -> ResumableEvaluator:
    """
    Raises:
        ValueError: for evaluators that cannot be resumed, or partial results that do not fit.
    """
    counter = find_cdgc_evaluator(evaluator)
    parts = getattr(evaluator, "_evaluators", [evaluator])
    others = [type(e).__name__ for e in parts if not isinstance(e, (CDGCEvaluator, LabelMapWriter))]
    if counter is None or counter.output_dir is None or others:
        raise ValueError(
            "TEST.RESUME keeps the results of CDGCEvaluator only; "
            f"{', '.join(others) or 'this evaluator'} must see every image. Set TEST.RESUME False."
        )
    bare = getattr(model, "module", model)
    dicts = DatasetCatalog.get(dataset_name)
    identity = partial(evaluation_fingerprint, cfg, bare, dataset_name, dicts)
    return ResumableEvaluator(evaluator, counter, identity, dicts)


def evaluate_dataset(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    evaluator: DatasetEvaluator,
    build_loader: Callable[[Collection[str]], Iterable],
    on_results: Callable[[str, dict], None] | None = None,
) -> dict:
    """Evaluate a model on one dataset and report on it.

    Files that cannot be read end an evaluation only after all other images were evaluated.

    Args:
        cfg: TEST.{ORACLE, RESUME}.
        model: a segmentor.
        dataset_name: registered name.
        evaluator: of :func:`build_evaluator`, possibly with others, or any of Detectron2's kind.
        build_loader: makes the test loader without the images of the given file names.
        on_results: called on the main process with the dataset's name and the results as soon as
            they are complete, before anything is written or drawn.

    Returns:
        Metrics by task; {} for datasets without labels, and on all but the main process.

    Raises:
        ValueError: before the evaluation, for a TEST.RESUME that does not fit; after it, naming
            images that could not be read.
    """
    counter = find_cdgc_evaluator(evaluator)
    resumable = None
    if cfg.TEST.RESUME:
        evaluator = resumable = _resumable(cfg, model, dataset_name, evaluator)
    elif counter is not None and counter.output_dir is not None:
        if comm.is_main_process():
            backup_existing(counter.output_dir)
        comm.synchronize()  # no process may write before the old files are moved
    checked = FailedImages(evaluator)
    loader = build_loader(resumable.finished if resumable else ())
    # Detectron2 logs the progress, too, which is enough for a log file.
    shown = comm.is_main_process() and sys.stderr.isatty()
    bar = progress(loader, dataset_name, "image", shown=shown)
    results = inference_on_dataset(EvaluatedSegmentor(model, cfg.TEST.ORACLE), bar, checked)
    if comm.is_main_process():
        if on_results is not None and not checked.failed:
            on_results(dataset_name, results)
        if counter is not None:
            report(counter, results)
            write_evaluation_page(cfg, counter, results)
    checked.raise_on_failed_images(dataset_name)
    if resumable is not None:
        resumable.remove_partial_results()
    return results


def evaluate(cfg: CfgNode, model: nn.Module, loader: Iterable, dataset_name: str) -> OrderedDict:
    """The scores of a model on a test loader, without files; {} on all but the main process.

    Raises:
        ValueError: after all images, naming those that could not be read.
    """
    head = cfg.MODEL.SEM_SEG_HEAD
    checked = FailedImages(
        CDGCEvaluator(
            dataset_name,
            head.NUM_CLASSES,
            head.IGNORE_VALUE,
            boundary_ratio=cfg.TEST.BOUNDARY_RATIO,
        )
    )
    results = inference_on_dataset(EvaluatedSegmentor(model, cfg.TEST.ORACLE), loader, checked)
    checked.raise_on_failed_images(dataset_name)
    return results
