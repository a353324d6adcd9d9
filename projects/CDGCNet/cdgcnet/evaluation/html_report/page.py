"""Puts the pages together and writes them.

The template escapes every text. The page's Content-Security-Policy forbids other hosts, and every
script but its own.
"""

import base64
import hashlib
import logging
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from detectron2.config import CfgNode
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.events import get_event_storage

from cdgcnet.config.defaults import default_cfg
from cdgcnet.config.identity import flat_config
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.html_report.curves import draw_curves
from cdgcnet.evaluation.html_report.pictures import draw_pictures
from cdgcnet.evaluation.html_report.run_data import (
    Curve,
    Metrics,
    RunData,
    read_curves,
    read_scores,
)
from cdgcnet.evaluation.html_report.tables import (
    MAX_IMAGES,
    Table,
    config_differences,
    graph_table,
    largest_pairs,
    percent_matrix,
    score_table,
)
from cdgcnet.evaluation.image_result import image_scores
from cdgcnet.evaluation.notable_images import choose_images
from cdgcnet.evaluation.report import COLUMNS, MATRICES
from cdgcnet.utils.io import atomic_write
from cdgcnet.utils.numbers import fixed, signed
from cdgcnet.visualization.colors import class_colors


def write_evaluation_page(cfg: CfgNode, evaluator: CDGCEvaluator, results: dict) -> None:
    """Write ``report.html`` next to the other files of an evaluation.

    A page that cannot be written is logged as an error: it must cost neither scores nor a
    training. Without ground truth or a folder there is nothing to write.

    Args:
        cfg: of the evaluation.
        evaluator: after its ``evaluate()``, on the main process.
        results: what ``evaluate()`` has returned.
    """
    if evaluator.output_dir is None or not evaluator.labeled or "sem_seg" not in results:
        return
    logger = logging.getLogger(__name__)
    path = evaluator.output_dir / "report.html"
    try:
        with atomic_write(path) as tmp_path:
            text = render(evaluation_content(cfg, evaluator, results))
            tmp_path.write_text(text, encoding="utf-8")
        logger.info(f"Report: {path}")
    except Exception as error:
        logger.error(f"{path} was not written ({error}). Scores and all other files are complete.")
        logger.debug("The report stopped with this error:", exc_info=True)


def evaluation_content(cfg: CfgNode, evaluator: CDGCEvaluator, results: dict) -> dict[str, Any]:
    """What the template needs for one evaluation."""
    names = evaluator.names
    tasks = _all_tasks(cfg, evaluator, results)
    totals = {name: evaluator.total(name) for name in MATRICES}
    refined = totals["refined"]
    assert refined is not None
    truth = refined.sum(axis=1)
    counted = {name: counts for name, counts in totals.items() if counts is not None}
    scores = {
        record.file_name: image_scores(record, names)
        for record in evaluator.records
        if "refined" in record.counts
    }
    chosen = choose_images(scores, evaluator.worst_images) if evaluator.draw else {}
    pictures, left_out = draw_pictures(evaluator, chosen)
    worst = sorted(scores.items(), key=lambda item: _nan_last(item[1]["mIoU"]))
    curves = _with_these_scores(read_curves(_metrics_file(cfg)), cfg, evaluator, results)
    flat, defaults = flat_config(cfg), flat_config(default_cfg())
    return {
        "title": f"Evaluation on {evaluator.dataset_name}",
        "runs": [],
        "scores": [_task_table("Scores", tasks)],
        "graph": graph_table(results["graph"]) if "fixed" in results.get("graph", {}) else None,
        "curves": _curve_pictures({"": curves}),
        "matrices": [
            percent_matrix(MATRICES[name].title, MATRICES[name].columns, counts, truth, names)
            for name, counts in counted.items()
        ],
        "pairs": {
            MATRICES[name].title: largest_pairs(counts, truth, names)
            for name, counts in counted.items()
            if name in ("refined", "fixed", "broken")
        },
        "image_columns": [k for k in next(iter(scores.values()), {}) if not k.startswith("IoU-")],
        "images": worst[:MAX_IMAGES],
        "images_left_out": max(0, len(worst) - MAX_IMAGES),
        "pictures": pictures,
        "pictures_left_out": left_out,
        "swatches": dict(zip(names, class_colors(evaluator.metadata), strict=True)),
        "differences": [],
        "settings": [
            (key, repr(value), repr(defaults.get(key)))
            for key, value in sorted(flat.items())
            if value != defaults.get(key)
        ],
        "config": cfg.dump(),
    }


def _with_these_scores(
    curves: dict[str, Curve], cfg: CfgNode, evaluator: CDGCEvaluator, results: dict
) -> dict[str, Curve]:
    """Curves with the scores of an evaluation within a training, which are not in its file yet."""
    try:
        iteration = get_event_storage().iter
    except AssertionError:  # how Detectron2 reports that no training loop is running
        return curves
    prefix = f"{evaluator.dataset_name}/" if len(cfg.DATASETS.TEST) > 1 else ""
    for task, metrics in results.items():
        value = metrics.get("mIoU", math.nan)
        if math.isfinite(value):
            curve = curves.setdefault(f"{prefix}{task}/mIoU", [])
            curve[:] = [*(point for point in curve if point[0] != iteration), (iteration, value)]
    return curves


def comparison_content(runs: Sequence[RunData], links: Mapping[str, str]) -> dict[str, Any]:
    """What the template needs for one or more runs.

    Args:
        runs: with different names.
        links: title -> relative address of the pages of their evaluations.
    """
    tables = []
    for dataset in dict.fromkeys(d for run in runs for d in run.scores):
        having = {run.name: run.scores[dataset] for run in runs if dataset in run.scores}
        if len(runs) == 1:
            [tasks] = having.values()
            tables.append(_task_table(f"Scores on {dataset}", tasks))
            continue
        for task in dict.fromkeys(t for tasks in having.values() for t in tasks):
            if task.startswith("sem_seg"):
                columns = {name: tasks[task] for name, tasks in having.items() if task in tasks}
                ends = (next(iter(columns)), list(columns)[-1]) if len(columns) > 1 else None
                tables.append(score_table(f"{_title(task)}, on {dataset}", columns, ends))
    [only] = runs if len(runs) == 1 else [None]
    return {
        "title": f"Run {only.name}" if only else f"Comparison of {len(runs)} runs",
        "runs": [run.name for run in runs],
        "scores": tables,
        "graph": None,
        "curves": _curve_pictures({run.name if len(runs) > 1 else "": run.curves for run in runs}),
        "matrices": [],
        "pairs": {},
        "image_columns": [],
        "images": [],
        "images_left_out": 0,
        "pictures": [],
        "pictures_left_out": 0,
        "swatches": {},
        "differences": config_differences([run.config for run in runs]) if len(runs) > 1 else [],
        "settings": [],
        "config": "" if only is None else "\n".join(f"{k}: {v!r}" for k, v in only.config.items()),
        "links": links,
    }


def write_comparison_page(path: Path, runs: Sequence[RunData], links: Mapping[str, str]) -> None:
    """Write :func:`comparison_content` to a file, whole or not at all."""
    text = render(comparison_content(runs, links))
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(text, encoding="utf-8")


def _defined(written: Callable[[float], str], value: float) -> str:
    return "–" if math.isnan(value) else written(value)


def render(content: Mapping[str, Any]) -> str:
    """The page with a content of :func:`evaluation_content` or :func:`comparison_content`."""
    loader = jinja2.PackageLoader("cdgcnet.evaluation.html_report")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for name, written in (("score", fixed), ("change", signed)):
        environment.filters[name] = partial(_defined, written)
    environment.tests["nan"] = math.isnan
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        {"links": {}, **content},
        style=style,
        script=script,
        script_digest=digest,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        command=shlex.join(["cdgcnet" if "/" in a else a for a in sys.argv[:1]] + sys.argv[1:]),
        # The list of compiler flags after this line is of no use to a reader.
        environment=collect_env_info().partition("PyTorch built with:")[0].strip(),
    )


def _title(task: str) -> str:
    return COLUMNS.get(task, task.removeprefix("sem_seg_"))


def _task_table(title: str, tasks: Mapping[str, Metrics]) -> Table:
    """The predictions of one run side by side, and what the refinement gains."""
    order = [*COLUMNS, *(t for t in tasks if t.startswith("sem_seg") and t not in COLUMNS)]
    columns = {_title(task): tasks[task] for task in order if task in tasks}
    gain = ("coarse", "refined") if {"coarse", "refined"} <= columns.keys() else None
    return score_table(title, columns, gain)


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _all_tasks(cfg: CfgNode, evaluator: CDGCEvaluator, results: dict) -> dict[str, Metrics]:
    """The tasks of an evaluation, and those that ``results.json`` has of the same run.

    An evaluation with test-time augmentation follows the one without it.
    """
    assert evaluator.output_dir is not None
    augmented = evaluator.output_dir.name == evaluator.dataset_name + "_TTA"
    tasks = {
        task + "_TTA" * augmented: {key: float(value) for key, value in metrics.items()}
        for task, metrics in results.items()
    }
    try:
        stored = read_scores(Path(cfg.OUTPUT_DIR) / "results.json", list(cfg.DATASETS.TEST))
    except ValueError:  # there is none yet
        return tasks
    earlier = stored.get(evaluator.dataset_name, {})
    # As text, since NaN does not equal itself.
    same = all(repr(earlier.get(task)) == repr(metrics) for task, metrics in tasks.items())
    return {**earlier, **tasks} if same else tasks


def _metrics_file(cfg: CfgNode) -> Path:
    """That of the training in OUTPUT_DIR or, in an evaluation, next to the weights."""
    path = Path(cfg.OUTPUT_DIR) / "metrics.json"
    if not path.exists() and cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS:
        path = Path(cfg.MODEL.WEIGHTS).parent / "metrics.json"
    return path


def _curve_pictures(runs: Mapping[str, Mapping[str, Curve]]) -> list[tuple[str, str]]:
    """Titles and pictures: losses and mIoU, of all runs on the same axes.

    Args:
        runs: name of a run, "" for the only one -> its curves.
    """
    losses: dict[str, Curve] = {}
    scores: dict[str, Curve] = {}
    for name, curves in runs.items():
        for key, curve in curves.items():
            label = ", ".join(part for part in (name, key) if part)
            if key.endswith("/mIoU"):
                scores[label.removesuffix("/mIoU")] = curve
            elif key == "total_loss" or not name:
                losses[label] = curve
    named = {"loss": losses, "mIoU in percent": scores}
    return [(title, draw_curves(title, curves)) for title, curves in named.items() if curves]
