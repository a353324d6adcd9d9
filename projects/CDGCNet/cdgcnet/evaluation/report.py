"""Results as tables for the log and as JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from cdgcnet.utils.io import atomic_write
from cdgcnet.utils.numbers import fixed

# Task -> title of its column.
COLUMNS = {
    "sem_seg_coarse": "coarse",
    "sem_seg": "refined",
    "sem_seg_oracle": "oracle",
    "sem_seg_TTA": "refined+TTA",
}


class MatrixTexts(NamedTuple):
    """How a matrix of true classes (rows) and other labels (columns) is named and drawn.

    Attributes:
        file_name: without a suffix.
        title: above the matrix.
        columns: what the columns mean.
        colors: name of a matplotlib color map.
    """

    file_name: str
    title: str
    columns: str
    colors: str


# Name of a count in ImageRecord -> its matrix.
MATRICES = {
    "refined": MatrixTexts("confusion_refined", "Confusion, refined", "predicted class", "Blues"),
    "coarse": MatrixTexts("confusion_coarse", "Confusion, coarse", "predicted class", "Blues"),
    "oracle": MatrixTexts("confusion_oracle", "Confusion, oracle", "predicted class", "Blues"),
    "fixed": MatrixTexts("fixed", "Fixed by the graph", "coarse prediction, wrong", "Greens"),
    "broken": MatrixTexts("broken", "Broken by the graph", "refined prediction, wrong", "Reds"),
}
_MEANS = {
    "mIoU": "mean (mIoU)",
    "mIoU_union": "with absent (mIoU_union)",
    "mBIoU": "boundary (mBIoU)",
    "category_IoU": "categories",
    "iIoU": "instances (iIoU)",
}


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else fixed(value)


def format_table(results: dict[str, dict[str, float]], columns: dict[str, str]) -> str:
    """A table with the IoU of every class in the ground truth, and means.

    Args:
        results: task name -> metrics.
        columns: task name -> column title; a task without results gets no column.
    """
    columns = {task: title for task, title in columns.items() if task in results}
    some = results[next(iter(columns))]
    keys = {key: key.removeprefix("IoU-") for key in some if key.startswith("IoU-")}
    rows = []
    for key, name in (keys | {k: v for k, v in _MEANS.items() if k in some}).items():
        accuracies = [results[task].get(f"ACC-{name}", 0.0) for task in columns]
        if not all(math.isnan(a) for a in accuracies):
            rows.append([name, *(_cell(results[task].get(key, math.nan)) for task in columns)])
    return _table(rows, ["", *columns.values()])


def _table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    align = ("left", *["right"] * (len(header) - 1))
    return str(tabulate(rows, header, tablefmt="plain", colalign=align, disable_numparse=True))


def format_graph_table(results: dict[str, dict[str, float]]) -> str:
    """The effect of the refinement on every class in the ground truth; "" without a refinement.

    Args:
        results: task name -> metrics. Only the class-wise graph has nodes to show.
    """
    if not {"graph", "sem_seg", "sem_seg_coarse"} <= results.keys():
        return ""
    graph, coarse, refined = (results[k] for k in ("graph", "sem_seg_coarse", "sem_seg"))
    columns = {"IoU coarse": (coarse, "IoU"), "refined": (refined, "IoU")}
    means = [coarse["mIoU"], refined["mIoU"]]
    if "mBIoU" in refined:
        columns |= {"boundary coarse": (coarse, "BIoU"), "refined ": (refined, "BIoU")}
        means += [coarse["mBIoU"], refined["mBIoU"]]
    columns |= {f"{k} %": (graph, k) for k in ("fixed", "broken", "net")}
    means += [graph[k] for k in ("fixed", "broken", "net")]
    names = [k.removeprefix("IoU-") for k in refined if k.startswith("IoU-")]
    if any(f"nodes-{name}" in graph for name in names):
        columns |= {"nodes": (graph, "nodes"), "in images %": (graph, "node_images")}
    rows = [
        [name, *(_cell(source[f"{key}-{name}"]) for source, key in columns.values())]
        for name in names
        if not math.isnan(refined[f"ACC-{name}"])
    ]
    rows.append(["all", *map(_cell, means), *[""] * (len(columns) - len(means))])
    return _table(rows, ["", *columns])


def write_results(path: Path, results: dict) -> None:
    """Write metrics as JSON, with null for NaN."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps(clean(results), indent=2) + "\n", encoding="utf-8")
