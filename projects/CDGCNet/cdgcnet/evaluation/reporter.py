"""Reports on a finished evaluation: tables in the log, matrices, scores per image, pictures."""

import json
import logging
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog

from cdgcnet.data.decoding import NO_LIMIT
from cdgcnet.data.image_io import read_image
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.image_result import ImageRecord, image_scores, write_csv
from cdgcnet.evaluation.notable_images import choose_images, decode
from cdgcnet.evaluation.report import COLUMNS, MATRICES, format_graph_table, format_table
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.utils.io import atomic_write
from cdgcnet.utils.progress import progress

_MAX_NAME = 100  # of an image's file name in that of its picture; file systems allow 255 bytes


def report(evaluator: CDGCEvaluator, results: dict) -> None:
    """Log and write everything that a finished evaluation has found out.

    Pictures come last. One that cannot be drawn is logged as an error and ends no training run.

    Args:
        evaluator: after its ``evaluate()``, on the main process.
        results: what ``evaluate()`` has returned.
    """
    log_tables(evaluator, results)
    if evaluator.output_dir is None:
        return
    logger = logging.getLogger(__name__)
    scores = write_files(evaluator, evaluator.output_dir)
    chosen = choose_images(scores, evaluator.worst_images)
    if chosen:
        lines = (f"{name}  ({reasons})" for name, reasons in chosen.items())
        logger.info("Images to look at:\n" + "\n".join(lines))
    if evaluator.draw:
        logger.info(f"Drawing the confusion matrices and {len(chosen)} images ...")
        try:
            draw_matrices(evaluator, evaluator.output_dir)
            draw_images(evaluator, evaluator.output_dir / "pictures", chosen)
        except Exception as error:
            logger.error(
                f"The pictures in {evaluator.output_dir} are incomplete ({error}). Scores and all "
                "other files are complete."
            )
            logger.debug("Drawing stopped with this error:", exc_info=True)
    logger.info(f"Files of the evaluation: {evaluator.output_dir}")


def log_tables(evaluator: CDGCEvaluator, results: dict) -> None:
    """Log the scores per class, and what the graph did."""
    logger = logging.getLogger(__name__)
    name = evaluator.dataset_name
    if not evaluator.labeled:
        logger.info(f"{name} has no ground truth, so there are no scores")
        return
    if not evaluator.records:
        return
    logger.info(f"IoU in percent on {name}:\n{format_table(results, COLUMNS)}")
    graph = format_graph_table(results)
    if graph:
        logger.info(
            f"Effect of the graph on {name}: IoU and boundary IoU (width "
            f"{evaluator.boundary_ratio:g} of the diagonal) before and after it; pixels fixed and "
            "broken in percent of the true class; mean number of nodes in the images that have "
            f"any, and the percentage of these images:\n{graph}"
        )


def write_files(evaluator: CDGCEvaluator, folder: Path) -> dict[str, dict[str, float]]:
    """Write the matrices, the scores per image and, if asked for, the run-length encoding.

    Returns:
        File name -> :func:`~cdgcnet.evaluation.image_result.image_scores`.
    """
    for name, texts in MATRICES.items():
        matrix = evaluator.total(name)
        if matrix is not None:
            with atomic_write(folder / f"{texts.file_name}.npy") as tmp_path:
                np.save(tmp_path, matrix)
    if evaluator.save_rle:
        entries = [entry for record in evaluator.records for entry in record.rle]
        with atomic_write(folder / "sem_seg_predictions.json") as tmp_path:
            tmp_path.write_text(json.dumps(entries), encoding="utf-8")
    scores = {
        record.file_name: image_scores(record, evaluator.names)
        for record in evaluator.records
        if PredictionKind.REFINED.value in record.counts
    }
    if scores:
        write_csv(folder / "per_image.csv", scores)
    return scores


def draw_matrices(evaluator: CDGCEvaluator, folder: Path) -> None:
    """Draw every matrix in percent of the pixels of the true class."""
    from cdgcnet.visualization.confusion_matrix import draw_confusion_matrix

    confusion = evaluator.total(PredictionKind.REFINED.value)
    if confusion is None:
        return
    truth = confusion.sum(axis=1, keepdims=True).astype(float)
    matrices = {name: evaluator.total(name) for name in MATRICES}
    for name, matrix in progress(matrices.items(), "drawing matrices", "matrix"):
        if matrix is not None:
            file_name, title, columns, colors = MATRICES[name]
            percent = np.divide(100 * matrix, truth, out=np.zeros(matrix.shape), where=truth > 0)
            path = folder / f"{file_name}.png"
            draw_confusion_matrix(path, percent, evaluator.names, title, columns, colors)


def draw_images(evaluator: CDGCEvaluator, folder: Path, chosen: dict[str, str]) -> None:
    """Draw images from the label maps that the evaluator has kept.

    Args:
        evaluator: finished.
        folder: of the pictures.
        chosen: file name -> reasons, see
            :func:`~cdgcnet.evaluation.notable_images.choose_images`.
    """
    dicts = {d["file_name"]: d for d in DatasetCatalog.get(evaluator.dataset_name)}
    records = {r.file_name: r for r in evaluator.records}
    bar = progress(chosen.items(), "drawing images", "image")
    for number, (name, reasons) in enumerate(bar):
        if not records[name].label_maps:  # a resumed evaluation that kept fewer images
            logging.getLogger(__name__).warning(
                f"{name} is not drawn: the interrupted evaluation has not kept its label maps"
            )
            continue
        title = f"{Path(name).name} - {reasons}"
        path = folder / f"{number:02}_{_shortened(Path(name).stem)}.png"
        _draw_image(evaluator, path, dicts[name], records[name], title)


def _shortened(stem: str) -> str:
    data = stem.encode()
    return stem if len(data) <= _MAX_NAME else data[:_MAX_NAME].decode(errors="ignore") + "…"


def _draw_image(
    evaluator: CDGCEvaluator, path: Path, dataset_dict: dict, record: ImageRecord, title: str
) -> None:
    from cdgcnet.visualization.change_map import draw_predictions

    labels = {name: decode(png) for name, png in record.label_maps.items()}
    height, width = labels[PredictionKind.REFINED.value].shape
    truth = evaluator.read_ground_truth(dataset_dict, (height, width))
    draw_predictions(
        path,
        read_image(record.file_name, max_pixels=NO_LIMIT),
        truth["ground_truth"].numpy(),
        labels,
        evaluator.metadata,
        evaluator.ignore_label,
        title,
    )
