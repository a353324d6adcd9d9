"""The record of a finished row: one small JSON file, never written twice."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from cdgcnet.checkpoint.reading import name_of
from cdgcnet.checkpoint.strict_checkpointer import read_provenance
from cdgcnet.config.validation import FROM_SCRATCH
from cdgcnet.utils.io import atomic_write, is_unfinished

_METRICS = ("mIoU", "mIoU_union", "mBIoU", "mACC", "pACC", "fwIoU")


class RunMetadata(TypedDict):
    """Where a number comes from."""

    command: str
    commit: str
    versions: str
    hardware: str
    date: str


class Cost(TypedDict, total=False):
    """What a network costs; a value that could not be measured is absent.

    ``gflops`` are 10⁹ multiply-adds for an image of the crop's size, ``peak_memory`` bytes of a
    "process" or a "GPU" (``peak_memory_of``).
    """

    parameters: int
    gflops: FiniteFloat
    not_counted: dict[str, int]
    peak_memory: int
    peak_memory_of: str
    seconds_per_iteration: FiniteFloat


@dataclass(frozen=True, config={"extra": "forbid"})
class Record:
    """One row trained and evaluated with one seed.

    Attributes:
        row, label: the row that was run; other rows with the same hash share the record.
        hash: of the resolved config, evaluation included.
        seed: of the run.
        overrides: KEY VALUE pairs on top of the row's files.
        weights: what the training started from, as :func:`name_weights` describes it.
        scores: task -> metric -> percent; empty for a test set without labels.
        cost: of the network and the run.
        run_metadata: command, commit, versions, hardware and date.
    """

    row: str
    label: str
    hash: str
    seed: int
    overrides: list[str]
    weights: str
    scores: dict[str, dict[str, FiniteFloat]]
    cost: Cost
    run_metadata: RunMetadata

    def miou(self, task: str = "sem_seg") -> float | None:
        """mIoU in percent of "sem_seg", "sem_seg_coarse", "sem_seg_TTA"; None if not measured."""
        return self.scores.get(task, {}).get("mIoU")


def record_path(folder: Path, config_hash: str, seed: int) -> Path:
    return folder / f"{config_hash}-seed{seed}.json"


_RECORD = TypeAdapter(Record)


def load_record(path: Path) -> Record:
    """Read and validate one record.

    Raises:
        ValueError: naming the file and the first value that is wrong.
    """
    try:
        record = _RECORD.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        found = f" ({place} is {first['input']!r})" if place else ""
        raise ValueError(
            f"{path}: not the record of a finished row: {first['msg']}{found}"
        ) from error
    if path.name != record_path(path.parent, record.hash, record.seed).name:
        raise ValueError(
            f"{path}: holds the record of hash {record.hash}, seed {record.seed}; was it renamed?"
        )
    return record


def load_records(folder: Path) -> dict[tuple[str, int], Record]:
    """All records of one profile and split, by (hash, seed).

    Raises:
        ValueError: if a file is not a valid record, or if the records started from different
            weights, which must not share a table.
    """
    # Another process or thread may be writing one, or was killed while it was.
    paths = sorted(p for p in folder.glob("*-seed*.json") if not is_unfinished(p))
    records = [load_record(path) for path in paths]
    started = sorted({r.weights for r in records})
    if len({weights_identity(name) for name in started}) > 1:
        raise ValueError(
            f"{folder}: records that started from different weights cannot be compared: "
            + "; ".join(started)
        )
    return {(r.hash, r.seed): r for r in records}


def save_record(folder: Path, record: Record) -> Path:
    """Write a record.

    Raises:
        FileExistsError: if the row already has one.
    """
    path = record_path(folder, record.hash, record.seed)
    if path.exists():
        raise FileExistsError(f"{path} exists; a finished row is never replaced")
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    return path


def select_scores(results: dict[str, Any], *, tta: bool) -> dict[str, dict[str, float]]:
    """The scores of one evaluation in ``results.json``: means and IoU per class, in percent.

    Args:
        results: task -> metric -> value.
        tta: select the scores with test-time augmentation ("…_TTA"), or those without.
    """
    return {
        task: {
            name: round(value, 4)
            for name, value in metrics.items()
            if value is not None
            and not math.isnan(value)
            and (name in _METRICS or name.startswith("IoU-"))
        }
        for task, metrics in results.items()
        if task.startswith("sem_seg") and task.endswith("_TTA") == tta
    }


def name_weights(path: str, stride_in_1x1: bool) -> str:
    """One line on what a training run starts from: file name, digest and provenance, no folders.

    Raises:
        FileNotFoundError: naming a file that does not exist.
    """
    if path in ("", FROM_SCRATCH):
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
    """The part of :func:`name_weights` that describes the contents, without the file name."""
    begin = name.find(" (sha256 ")
    return name if begin < 0 else name[begin:]
