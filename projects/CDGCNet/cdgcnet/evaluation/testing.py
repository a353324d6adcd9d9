"""An evaluation with all it leaves behind: tables in the log, matrices, CSV, label maps, pictures.

Everything goes to ``OUTPUT_DIR/inference/DATASET``, with "_TTA" behind it under test-time
augmentation.
"""

import json
import logging
import math
import shutil
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import nn

from cdgcnet.config.identity import evaluation_fingerprint
from cdgcnet.data.evaluation_mapper import build_evaluation_mapper
from cdgcnet.data.image_io import read_image
from cdgcnet.evaluation.evaluator import (
    CDGCEvaluator,
    LabelOutput,
    predictions_of,
    raise_on_failed_images,
    run_evaluator,
)
from cdgcnet.evaluation.image_result import PREDICTIONS, ImageRecord, image_scores, write_csv
from cdgcnet.evaluation.report import COLUMNS, format_graph_table, format_table
from cdgcnet.evaluation.resume import PartialResults, read_partial_results
from cdgcnet.evaluation.writers import label_paths, rle_entries, write_label_png
from cdgcnet.utils.io import atomic_write, backup_existing

# Name of a count -> title, label of the columns and colors of its picture.
_MATRICES = {
    "refined": ("Confusion, refined", "predicted", "Blues"),
    "coarse": ("Confusion, coarse", "predicted", "Blues"),
    "oracle": ("Confusion, oracle", "predicted", "Blues"),
    "fixed": ("Fixed by the graph", "coarse prediction, wrong", "Greens"),
    "broken": ("Broken by the graph", "refined prediction, wrong", "Reds"),
}


TTA_SUFFIX = "_TTA"  # of folders and task names


def evaluation_folder(cfg: CfgNode, dataset_name: str, suffix: str = "") -> Path:
    return Path(cfg.OUTPUT_DIR) / "inference" / (dataset_name + suffix)


def check_test_set(cfg: CfgNode, name: str, dicts: Sequence[dict]) -> bool:
    """Whether a test set has labels; refuses one that nothing can be done with.

    Raises:
        ValueError: for a set without images, with labels for some of them only, without labels
            and without a key that writes predictions; for TEST.RESUME if images repeat.
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
            "tools/make_submission.py."
        )
    if cfg.TEST.RESUME and len({d["file_name"] for d in dicts}) < len(dicts):
        raise ValueError(
            f"TEST.RESUME is True, but {name} lists an image more than once; set it to False"
        )
    return not unlabeled


def _resume(
    cfg: CfgNode, folder: Path, fingerprint: Callable[[], dict[str, Any]]
) -> list[ImageRecord]:
    """The images that are finished already; moves anything else in the folder's place aside."""
    finished = folder / "finished"
    if cfg.TEST.RESUME and finished.is_dir():
        return read_partial_results(finished, fingerprint())
    backup_existing(folder)
    return []


def evaluate_and_write(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    build_loader: Callable[[Collection[str]], Iterable],
    suffix: str = "",
) -> OrderedDict:
    """Evaluate a model on a registered set and write what came out of it.

    With TEST.RESUME each image's counts are kept as it is done; an evaluation that was killed, or
    ended with an error, goes on where it stopped. Files that cannot be read end an evaluation only
    after all other images were done and written.

    Args:
        cfg: TEST.{BOUNDARY_RATIO, ORACLE, WORST_IMAGES, PICTURES, SAVE_LABELS, SAVE_RLE,
            RESUME}.
        model: a segmentor.
        dataset_name: registered name.
        build_loader: gives the test loader without the images of these file names.
        suffix: of the folder and the task names.

    Returns:
        Metrics by task; {} for sets without labels, and on all but the main process.

    Raises:
        ValueError: before the evaluation, for a set that cannot be evaluated or a TEST.RESUME that
            does not fit; after it, naming images that could not be read.
    """
    logger = logging.getLogger(__name__)
    dicts = DatasetCatalog.get(dataset_name)
    labeled = check_test_set(cfg, dataset_name, dicts)
    metadata = MetadataCatalog.get(dataset_name)
    folder = evaluation_folder(cfg, dataset_name, suffix)
    paths = {}
    if cfg.TEST.SAVE_LABELS:
        paths = label_paths(folder / "labels", [d["file_name"] for d in dicts])
    fingerprint: dict[str, Any] = {}

    def compute_fingerprint() -> dict[str, Any]:
        bare = getattr(model, "module", model)
        fingerprint.update(evaluation_fingerprint(cfg, bare, dataset_name, dicts))
        return fingerprint

    earlier: list[ImageRecord] = []
    problem = None
    if comm.is_main_process():
        try:
            earlier = _resume(cfg, folder, compute_fingerprint)
            if cfg.TEST.RESUME and not fingerprint:
                compute_fingerprint()
        except (ValueError, OSError) as error:
            problem = str(error)
    # All processes stop together, and skip the same images.
    problem, done = comm.all_gather((problem, [r.file_name for r in earlier]))[0]
    if problem:
        raise ValueError(problem)
    if done:
        logger.info(f"TEST.RESUME: {len(done)} of {len(dicts)} images are finished")
    journal = None
    if cfg.TEST.RESUME:
        journal = PartialResults(folder / "finished", fingerprint, comm.get_rank())

    def finish(record: ImageRecord, predictions: dict[str, np.ndarray]) -> None:
        if cfg.TEST.SAVE_LABELS:
            write_label_png(paths[record.file_name], predictions["refined"], metadata)
        if cfg.TEST.SAVE_RLE:
            record.rle = rle_entries(predictions["refined"], record.file_name, metadata)
        if journal is not None:
            journal.append(record)

    head = cfg.MODEL.SEM_SEG_HEAD
    evaluator = CDGCEvaluator(
        dataset_name,
        head.NUM_CLASSES,
        head.IGNORE_VALUE,
        boundary_ratio=cfg.TEST.BOUNDARY_RATIO,
        labeled=labeled,
        earlier=earlier,
        finish=finish,
    )
    try:
        results = run_evaluator(cfg, model, build_loader(set(done)), evaluator)
    finally:
        if journal is not None:
            journal.close()
    results = OrderedDict((task + suffix, metrics) for task, metrics in results.items())
    if comm.is_main_process():
        _report(cfg, results, dataset_name)
        scores = _write_files(cfg, folder, evaluator)
        chosen = choose_images(scores, cfg.TEST.WORST_IMAGES)
        if chosen:
            lines = (f"{name}  ({why})" for name, why in chosen.items())
            logger.info("Images to look at:\n" + "\n".join(lines))
        if cfg.TEST.PICTURES:
            _draw_matrices(folder, evaluator)
            _draw_images(cfg, model, folder / "pictures", dicts, chosen, metadata)
        logger.info(f"Files of the evaluation: {folder}")
    raise_on_failed_images(evaluator)
    if journal is not None and comm.is_main_process():
        shutil.rmtree(folder / "finished")  # complete: there is nothing to go on with
    return results


def _report(cfg: CfgNode, results: dict, dataset_name: str) -> None:
    logger = logging.getLogger(__name__)
    if not results:
        logger.info(f"No ground truth in {dataset_name}: no scores")
        return
    logger.info(f"IoU in percent on {dataset_name}:\n{format_table(results, COLUMNS)}")
    graph = format_graph_table(results)
    if graph:
        logger.info(
            f"What the graph did on {dataset_name}: IoU and boundary IoU (width "
            f"{cfg.TEST.BOUNDARY_RATIO:g} of the diagonal) before and after it; pixels fixed and "
            "broken, percent of the true class; nodes per image with any, and in how many images:\n"
            + graph
        )


def _matrix_file(name: str) -> str:
    return f"confusion_{name}" if name in PREDICTIONS else name


def _write_files(
    cfg: CfgNode, folder: Path, evaluator: CDGCEvaluator
) -> dict[str, dict[str, float]]:
    """Matrices, CSV and RLE; gives :func:`image_scores` by file name."""
    for name in _MATRICES:
        matrix = evaluator.total(name)
        if matrix is not None:
            with atomic_write(folder / f"{_matrix_file(name)}.npy") as tmp_path:
                np.save(tmp_path, matrix)
    if cfg.TEST.SAVE_RLE:
        entries = [entry for record in evaluator.records for entry in record.rle]
        with atomic_write(folder / "sem_seg_predictions.json") as tmp_path:
            tmp_path.write_text(json.dumps(entries), encoding="utf-8")
    scores = {
        r.file_name: image_scores(r, evaluator.names)
        for r in evaluator.records
        if "refined" in r.counts
    }
    if scores:
        write_csv(folder / "per_image.csv", scores)
    return scores


def choose_images(scores: dict[str, dict[str, float]], count: int) -> dict[str, str]:
    """Images to look at: the worst, and those in which the graph fixed and broke most.

    Args:
        scores: file name -> :func:`image_scores`.
        count: of each kind.

    Returns:
        File name -> why it was chosen, perhaps for several reasons.
    """
    chosen: dict[str, list[str]] = {}
    for key, kind, sign in (
        ("mIoU", "worst {}: mIoU {:.1f}", 1),
        ("fixed", "most fixed {}: {:.0f} pixels", -1),
        ("broken", "most broken {}: {:.0f} pixels", -1),
    ):
        pairs = [(name, row.get(key, math.nan)) for name, row in scores.items()]
        # An image of which nothing was counted, or changed, shows nothing.
        valid = [(n, v) for n, v in pairs if not math.isnan(v) and (v or key == "mIoU")]
        valid.sort(key=lambda pair: sign * pair[1])
        for place, (name, value) in enumerate(valid[:count], start=1):
            chosen.setdefault(name, []).append(kind.format(place, value))
    return {name: "; ".join(reasons) for name, reasons in chosen.items()}


def _draw_matrices(folder: Path, evaluator: CDGCEvaluator) -> None:
    from cdgcnet.visualization.evaluation_images import write_heat_map

    whole = evaluator.total("refined")
    if whole is None:
        return
    truth = whole.sum(axis=1, keepdims=True).astype(float)
    for name, (title, columns, colors) in _MATRICES.items():
        matrix = evaluator.total(name)
        if matrix is not None:
            percent = np.divide(100 * matrix, truth, out=np.zeros(matrix.shape), where=truth > 0)
            path = folder / f"{_matrix_file(name)}.png"
            write_heat_map(path, percent, evaluator.names, title, columns, colors)


def _draw_images(
    cfg: CfgNode,
    model: nn.Module,
    folder: Path,
    dicts: Sequence[dict],
    chosen: dict[str, str],
    metadata: Metadata,
) -> None:
    """Predict the chosen images once more and draw them."""
    from cdgcnet.visualization.evaluation_images import write_image

    head = cfg.MODEL.SEM_SEG_HEAD
    mapper = build_evaluation_mapper(cfg)
    wrapped = LabelOutput(model, cfg.TEST.ORACLE)
    by_name = {d["file_name"]: d for d in dicts}
    for number, (name, reasons) in enumerate(chosen.items()):
        x = mapper(by_name[name])
        with inference_context(wrapped), torch.no_grad():
            output = wrapped([x])[0]
        write_image(
            folder / f"{number:02}_{Path(name).stem}.png",
            read_image(name),
            x["ground_truth"].numpy(),
            predictions_of(output, head.NUM_CLASSES),
            metadata,
            head.IGNORE_VALUE,
            f"{Path(name).name} - {reasons}",
        )
