"""What is kept of a finished row: one small JSON, never written twice."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdgcnet.checkpoint.reading import name_of
from cdgcnet.checkpoint.strict_checkpointer import read_provenance
from cdgcnet.utils.io import atomic_write

_KINDS: dict[type | tuple[type, ...], str] = {
    str: "a text",
    int: "a whole number",
    (int, float): "a number",
    list: "a list",
    dict: "a mapping",
}
_CIRCUMSTANCES = ("command", "commit", "versions", "hardware", "date")
_KEPT = ("mIoU", "mIoU_union", "mBIoU", "mACC", "pACC", "fwIoU")


@dataclass(frozen=True)
class Record:
    """One row, one seed.

    Attributes:
        row, label: of the row whose run this was; rows of the same hash share it.
        hash: of the resolved config, evaluation included.
        seed: of the run.
        overrides: KEY VALUE pairs on top of the row's file.
        weights: what the training started from (:func:`name_weights`).
        scores: task -> metric -> percent; empty for a test set without labels.
        cost: "parameters", "gflops" of an image of the crop's size, "peak_memory" in bytes and
            "peak_memory_of" ("process" or "GPU"), "seconds_per_iteration"; what was not to be had
            is absent.
        circumstances: "command", "commit", "versions", "hardware", "date".
    """

    row: str
    label: str
    hash: str
    seed: int
    overrides: list[str]
    weights: str
    scores: dict[str, dict[str, float]]
    cost: dict[str, Any]
    circumstances: dict[str, str]

    def miou(self, task: str = "sem_seg") -> float | None:
        """mIoU in percent of "sem_seg", "sem_seg_coarse", "sem_seg_TTA"; None if not measured."""
        return self.scores.get(task, {}).get("mIoU")


def record_path(folder: Path, config_hash: str, seed: int) -> Path:
    return folder / f"{config_hash}-seed{seed}.json"


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else []


def _wrong_value(values: dict[str, Any]) -> str | None:
    """The first value that no run could have written, in words; None for a sound record.

    Args:
        values: by the names of :class:`Record`'s attributes, all of them.
    """
    numbers = ("parameters", "gflops", "peak_memory", "seconds_per_iteration")
    expected: list[tuple[str, Any, type | tuple[type, ...]]] = [
        *((key, values[key], str) for key in ("row", "label", "hash", "weights")),
        ("seed", values["seed"], int),
        ("overrides", values["overrides"], list),
        *((f"overrides[{i}]", v, str) for i, v in enumerate(_listed(values["overrides"]))),
        *((key, values[key], dict) for key in ("scores", "cost", "circumstances")),
    ]
    if all(isinstance(value, kind) for _, value, kind in expected):
        cost, about = values["cost"], values["circumstances"]
        expected += [(f"cost.{key}", cost[key], (int, float)) for key in numbers if key in cost]
        if "peak_memory" in cost:
            expected.append(("cost.peak_memory_of", cost.get("peak_memory_of"), str))
        expected += [(f"circumstances.{key}", about.get(key), str) for key in _CIRCUMSTANCES]
        for task, metrics in values["scores"].items():
            expected.append((f"scores.{task}", metrics, dict))
            if isinstance(metrics, dict):
                named = metrics.items()
                expected += [(f"scores.{task}.{key}", v, (int, float)) for key, v in named]
    for name, value, kind in expected:
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            return f"{name} is {value!r}, expected {_KINDS[kind]}"
    return None


def load_record(path: Path) -> Record:
    """
    Raises:
        ValueError: naming a file that is no record, and the value that is not one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the record of a finished row ({error})") from error
    if wrong := _wrong_value(values):
        raise ValueError(f"{path}: not the record of a finished row: {wrong}")
    if path.name != record_path(path.parent, record.hash, record.seed).name:
        raise ValueError(
            f"{path}: holds the record of hash {record.hash}, seed {record.seed}; was it renamed?"
        )
    return record


def load_records(folder: Path) -> dict[tuple[str, int], Record]:
    """All records of a profile's split by (hash, seed).

    Raises:
        ValueError: for a file that is no record, or records of networks that started from
            different weights, which no table may mix.
    """
    records = [load_record(p) for p in sorted(folder.glob("*-seed*.json"))]
    started = sorted({r.weights for r in records})
    if len({weights_identity(name) for name in started}) > 1:
        raise ValueError(
            f"{folder}: records that started from different weights cannot be compared: "
            + "; ".join(started)
        )
    return {(r.hash, r.seed): r for r in records}


def save_record(folder: Path, record: Record) -> Path:
    """
    Raises:
        FileExistsError: if the row was finished before.
    """
    path = record_path(folder, record.hash, record.seed)
    if path.exists():
        raise FileExistsError(f"{path} exists; a finished row is never replaced")
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    return path


def select_scores(results: dict[str, Any], *, tta: bool) -> dict[str, dict[str, float]]:
    """The scores of one evaluation out of ``results.json``: means and IoU per class, in percent.

    Args:
        results: task -> metric -> value.
        tta: those with test-time augmentation ("…_TTA"), or those without.
    """
    return {
        task: {
            name: round(value, 4)
            for name, value in metrics.items()
            if value is not None
            and not math.isnan(value)
            and (name in _KEPT or name.startswith("IoU-"))
        }
        for task, metrics in results.items()
        if task.startswith("sem_seg") and task.endswith("_TTA") == tta
    }


def name_weights(path: str, stride_in_1x1: bool) -> str:
    """What a training starts from: file name, contents and provenance, in a line without folders.

    So a number from a grown backbone says so.

    Raises:
        FileNotFoundError: naming a file that is not there (any more).
    """
    if not path:
        return "random weights"
    stride = ", stride in the 1x1 convolutions" if stride_in_1x1 else ""
    if "://" in path:
        return path + stride
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS: there is no file {file.absolute()}")
    provenance = read_provenance(path)
    return name_of(file) + (f": {provenance.line()}" if provenance else stride)


def weights_identity(name: str) -> str:
    """What :func:`name_weights` says of the contents: all of it but the file's name."""
    begin = name.find(" (sha256 ")
    return name if begin < 0 else name[begin:]
