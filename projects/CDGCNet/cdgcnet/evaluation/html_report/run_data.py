"""What a run's folder says about it: scores, config and training curves."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdgcnet.config.identity import complete_config

Metrics = dict[str, float]  # NaN: not defined
Curve = list[tuple[int, float]]  # iteration, value


@dataclass(frozen=True)
class RunData:
    """A run as its files describe it.

    Attributes:
        name: shown on the page.
        scores: dataset -> task -> metrics in percent.
        config: dotted keys -> values; empty if the folder holds no config.
        curves: name of a scalar -> its values during the training.
    """

    name: str
    scores: dict[str, dict[str, Metrics]]
    config: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)


def read_run(folder: Path, name: str) -> RunData:
    """Read ``results.json`` and, if they exist, ``config.yaml`` and ``metrics.json``.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; expected that of a run")
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no results.json, so there are no scores to show; evaluate the run "
            "first, with `cdgcnet eval`"
        )
    config = read_config(folder / "config.yaml")
    datasets = [str(dataset) for dataset in config.get("DATASETS.TEST", ())]
    scores = read_scores(path, datasets)
    return RunData(name, scores, config, read_curves(folder / "metrics.json"))


def read_scores(path: Path, datasets: Sequence[str]) -> dict[str, dict[str, Metrics]]:
    """Dataset -> task -> metrics of a ``results.json``, with NaN for null.

    Args:
        path: of the file. It leaves the dataset out if there was only one.
        datasets: DATASETS.TEST of the run; empty if it is unknown.

    Raises:
        ValueError: for a file that no evaluation has written.
    """
    wrong = f"{path}: expected the scores that an evaluation writes"
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{wrong}, found no readable JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{wrong}, found a {type(loaded).__name__}")
    values = list(loaded.values())
    nested = any(
        isinstance(v, dict) and any(isinstance(x, dict) for x in v.values()) for v in values
    )
    if not nested:
        loaded = {datasets[0] if len(datasets) == 1 else "test set": loaded}
    scores: dict[str, dict[str, Metrics]] = {}
    for dataset, tasks in loaded.items():
        if not isinstance(tasks, dict) or not all(isinstance(m, dict) for m in tasks.values()):
            raise ValueError(f"{wrong}; {dataset!r} has no metrics by task")
        scores[dataset] = {}
        for task, metrics in tasks.items():
            bad = [k for k, v in metrics.items() if v is not None and not _is_number(v)]
            if bad:
                raise ValueError(f"{wrong}; {task}: {bad[0]} is not a number")
            scores[dataset][task] = {
                key: math.nan if value is None else float(value) for key, value in metrics.items()
            }
    return scores


def read_config(path: Path) -> dict[str, Any]:
    """The complete flat config of a run; {} if there is no such file.

    Raises:
        ValueError: for a file that is no config.
    """
    if not path.is_file():
        return {}
    try:
        return complete_config(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable config ({str(error).splitlines()[0]})") from error


def read_curves(path: Path) -> dict[str, Curve]:
    """The losses and mIoUs in a ``metrics.json``; {} if there is no such file.

    A killed run may leave its last line incomplete; lines that are not JSON are left out. Where a
    resumed run has repeated iterations, the last value counts.
    """
    if not path.is_file():
        return {}
    by_iteration: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if not isinstance(values, dict) or not isinstance(values.get("iteration"), int):
            continue
        for key in _plotted(values):
            if _is_number(values[key]) and math.isfinite(values[key]):
                by_iteration.setdefault(key, {})[values["iteration"]] = float(values[key])
    return {key: sorted(values.items()) for key, values in by_iteration.items()}


def _plotted(keys: Iterable[str]) -> list[str]:
    return [k for k in keys if k == "total_loss" or k.startswith("loss_") or k.endswith("/mIoU")]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
