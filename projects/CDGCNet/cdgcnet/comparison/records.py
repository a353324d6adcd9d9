"""What is kept of a finished row: one JSON file, never written twice."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cdgcnet.comparison.rows import Row
from cdgcnet.config.identity import changed_keys
from cdgcnet.utils.digests import digest_of
from cdgcnet.utils.io import atomic_write, is_unfinished


@dataclass(frozen=True)
class Record:
    """A row that was trained and scored with one seed.

    Attributes:
        label, kind, context, head: of the :class:`Row`.
        seed: of weights and crops.
        settings: :meth:`Row.settings`.
        instrument: everything that all rows of a table must share.
        metrics: task -> metric -> percent; scores that are not defined are left out.
        cost: see :func:`cdgcnet.comparison.training.train`.
        metadata: command, commit, versions, hardware and date.
    """

    label: str
    kind: str
    context: str
    head: str
    seed: int
    settings: dict[str, Any]
    instrument: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    cost: dict[str, Any]
    metadata: dict[str, str]

    @property
    def score(self) -> float:
        """mIoU of the final prediction, in percent."""
        return self.metrics["sem_seg"]["mIoU"]


def record_path(folder: Path, row: Row, seed: int, instrument: dict[str, Any]) -> Path:
    """Where a row's record is kept; another row, seed or instrument has another name."""
    name = re.sub(r"[^\w=+-]+", "-", row.label.replace(" ", ""))[:50]
    digest = digest_of([changed_keys(row.settings()), instrument])
    return folder / f"{name}-{digest}-seed{seed}.json"


def save_record(path: Path, record: Record) -> None:
    content = asdict(record)
    content["metrics"] = {
        task: {key: round(v, 4) for key, v in metrics.items() if not math.isnan(v)}
        for task, metrics in record.metrics.items()
    }
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_record(path: Path) -> Record:
    """
    Raises:
        ValueError: naming the file, if it is no record.
    """
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
        float(record.score)
        int(record.seed)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a record of a comparison ({error!r})") from error
    return record


def record_files(folder: Path) -> list[Path]:
    """The records of a folder, sorted, without one that a killed run left unfinished."""
    return sorted(path for path in folder.glob("*.json") if not is_unfinished(path))


def load_records(folder: Path) -> list[Record]:
    """All records of a folder, sorted by file name.

    Raises:
        FileNotFoundError, ValueError: naming the folder or the file.
    """
    paths = record_files(folder) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(f"{folder} holds no record (*.json) of a comparison")
    return [load_record(path) for path in paths]


def different_settings(instrument: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The keys in which two instruments differ."""
    keys = sorted(instrument.keys() | other.keys())
    return [key for key in keys if instrument.get(key) != other.get(key)]


def same_instrument(records: Sequence[Record]) -> dict[str, Any]:
    """What all records share.

    Raises:
        ValueError: naming the first setting in which they differ.
    """
    first = records[0].instrument
    for record in records[1:]:
        for key in different_settings(first, record.instrument):
            raise ValueError(
                f"records of different settings cannot share a table: {key} is "
                f"{first.get(key)!r} in {records[0].label}, seed {records[0].seed}, and "
                f"{record.instrument.get(key)!r} in {record.label}, seed {record.seed}; "
                "move them to folders of their own"
            )
    return first
