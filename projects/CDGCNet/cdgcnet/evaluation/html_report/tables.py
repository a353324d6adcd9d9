"""The numbers of a page: tables of scores, confusion, pairs of classes and images.

Shape shorthand: M classes; matrices (M, M) have ground truth in rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_CLASSES = 40  # in a drawn matrix; more would be too small to read
MAX_PAIRS = 12
MAX_IMAGES = 5000  # rows of the table of images
_MEANS = {
    "mIoU": "mIoU",
    "mIoU_union": "mIoU with absent classes",
    "mBIoU": "boundary mIoU",
    "fwIoU": "frequency-weighted IoU",
    "mACC": "mean accuracy",
    "pACC": "pixel accuracy",
    "category_IoU": "IoU of categories",
    "iIoU": "instance-level IoU",
}
_GRAPH = {
    "fixed": "fixed",
    "broken": "broken",
    "net": "net",
    "nodes": "nodes",
    "node_images": "in % of images",
}


class Row(NamedTuple):
    """A row of numbers; NaN where a score is not defined."""

    name: str
    key: str
    values: list[float]


class Table(NamedTuple):
    """Numbers with titles.

    Attributes:
        title: above the table.
        columns: titles of the columns.
        means: rows over all classes.
        rows: one for each class.
        difference: the columns whose difference, the second minus the first, is shown.
    """

    title: str
    columns: list[str]
    means: list[Row]
    rows: list[Row]
    difference: tuple[int, int] | None = None


def score_table(
    title: str,
    columns: Mapping[str, Mapping[str, float]],
    difference: tuple[str, str] | None = None,
) -> Table:
    """Means and the IoU of every class that some column has.

    Args:
        title: of the table.
        columns: title of a column -> metrics of one task.
        difference: titles of two columns; what the second one has more is shown next to them.
    """

    def row(key: str, name: str) -> Row:
        return Row(name, key, [metrics.get(key, math.nan) for metrics in columns.values()])

    keys = dict.fromkeys(key for metrics in columns.values() for key in metrics)
    means = [row(key, name) for key, name in _MEANS.items() if key in keys]
    classes = [row(key, key.removeprefix("IoU-")) for key in keys if key.startswith("IoU-")]
    shown = [r for r in classes if not _empty(r)]
    order = list(columns)
    places = (order.index(difference[0]), order.index(difference[1])) if difference else None
    return Table(title, order, means, shown, places)


def graph_table(metrics: Mapping[str, float]) -> Table:
    """What the graph changed, over all classes and per class.

    Args:
        metrics: of the task "graph".
    """
    names = [key.removeprefix("fixed-") for key in metrics if key.startswith("fixed-")]
    kinds = {k: title for k, title in _GRAPH.items() if any(f"{k}-{n}" in metrics for n in names)}
    rows = [
        Row(name, name, [metrics.get(f"{kind}-{name}", math.nan) for kind in kinds])
        for name in names
    ]
    total = Row("all classes", "all", [metrics.get(kind, math.nan) for kind in kinds])
    present = [r for r in rows if not math.isnan(r.values[0])]
    return Table("Effect of the graph", list(kinds.values()), [total], present)


def _empty(row: Row) -> bool:
    return all(math.isnan(value) for value in row.values)


class Matrix(NamedTuple):
    """A matrix in percent of the pixels of the true class, possibly of some classes only.

    Attributes:
        title: above it.
        columns: what they mean.
        names: of rows and columns.
        percent: rows of values.
        left_out: number of classes without a row.
    """

    title: str
    columns: str
    names: list[str]
    percent: list[list[float]]
    left_out: int


def percent_matrix(
    title: str, columns: str, counts: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> Matrix:
    """At most MAX_CLASSES classes: those with the most pixels off the diagonal.

    Args:
        title, columns: see :class:`Matrix`.
        counts: (M, M) pixels.
        truth: (M,) pixels of each true class.
        names: of the classes.
    """
    off = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    occurring = np.flatnonzero((truth > 0) | (counts.sum(axis=0) > 0))
    kept = np.sort(occurring[np.argsort(-off[occurring], kind="stable")][:MAX_CLASSES])
    shares = 100 * counts / np.maximum(truth, 1)[:, None]
    return Matrix(
        title,
        columns,
        [names[i] for i in kept],
        shares[np.ix_(kept, kept)].tolist(),
        len(occurring) - len(kept),
    )


class Pair(NamedTuple):
    """Pixels of a true class that had another label."""

    truth: str
    label: str
    pixels: int
    percent: float  # of the pixels of the true class


def largest_pairs(counts: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> list[Pair]:
    """The MAX_PAIRS entries off the diagonal with the most pixels.

    Args:
        counts: (M, M) pixels.
        truth: (M,) pixels of each true class.
        names: of the classes.
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    first = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(first, wrong.shape), strict=True)]
    return [
        Pair(names[i], names[j], int(wrong[i, j]), float(100 * wrong[i, j] / max(truth[i], 1)))
        for i, j in pairs
        if wrong[i, j]
    ]


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values differ between runs, with the value of each run as text.

    Args:
        configs: flat; an empty one is that of a run without a stored config.
    """
    known = [config for config in configs if config]
    keys = sorted({key for config in known for key in config} - {"OUTPUT_DIR"})
    differing = [k for k in keys if len({repr(config.get(k)) for config in known}) > 1]
    return [
        (key, [repr(config.get(key)) if config else "not recorded" for config in configs])
        for key in differing
    ]
