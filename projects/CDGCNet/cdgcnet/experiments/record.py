"""What is kept of a finished row: one small JSON, never written twice."""

import json
import math
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import detectron2
import torch

from ..files import replacing
from ..weight_formats.files import name_of
from ..weights import read_provenance

ROOT = Path(__file__).resolve().parents[4]
UNKNOWN = "not recorded"
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


def load_record(path: Path) -> Record:
    """
    Raises:
        ValueError: naming a file that is no record.
    """
    try:
        record = Record(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the record of a finished row ({error})") from error
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
    if len(started) > 1:
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
    with replacing(path) as beside:
        beside.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
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


# ---------------------------------------------------------------- circumstances
def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip()


def commit() -> str:
    """The commit of the code that runs, and whether tracked files differ from it."""
    found = _git("rev-parse", "--short", "HEAD") or UNKNOWN
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{found} with uncommitted changes" if changed else found


def hardware() -> str:
    """The processor, and the GPU if there is one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {torch.get_num_threads()} thread(s) per process; {gpu}"


def plain_command(command: Sequence[str]) -> str:
    """A command as another user would type it: no folders of this machine, no OUTPUT_DIR."""
    words: list[str] = []
    rest = list(command)
    while rest:
        word = rest.pop(0)
        if word == "OUTPUT_DIR":
            rest[:1] = []
        elif word.startswith("/"):
            path = Path(word)
            inside = path.is_relative_to(ROOT)
            words.append(str(path.relative_to(ROOT)) if inside else path.name)
        else:
            words.append(word)
    return shlex.join(words)


def circumstances(command: Sequence[str]) -> dict[str, str]:
    """What a number needs beside it.

    Args:
        command: of the process that measures it.
    """
    return {
        "command": plain_command(command),
        "commit": commit(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"detectron2 {detectron2.__version__}",
        "hardware": hardware(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def circumstances_from_log(folder: Path) -> dict[str, str]:
    """The same of a run that was started by hand, as far as its ``log.txt`` tells.

    The commit is that of a ``commit.txt`` beside it, where there is one.
    """
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def found(pattern: str, default: str = UNKNOWN) -> str:
        match = re.search(pattern, log, re.MULTILINE)
        return match[1].strip() if match else default

    config = found(r"Namespace.config_file='([^']+)'")
    words = ["python", "train_net.py", "--config-file", config]
    words += re.findall(r"'([^']*)'", found(r"Namespace\(.*opts=\[(.*)\]\)", ""))
    python, torch_version = found(r"^Python +([0-9.]+)"), found(r"^PyTorch +(\S+) @")
    detectron = found(r"^detectron2 +(\S+) @")
    cpu, gpu = found(r"CPU capability usage: (.+)"), found(r"^GPU \d+(?:,\d+)* +(.+)$", "no GPU")
    beside = folder / "commit.txt"
    if beside.is_file():
        made_by = beside.read_text(encoding="utf-8").strip()
    else:
        made_by = found(r"CDGCNet commit:? ([0-9a-f]{7,40}[^\n]*)")
    ended = datetime.fromtimestamp((folder / "results.json").stat().st_mtime, timezone.utc)
    return {
        "command": plain_command(words),
        "commit": made_by,
        "versions": f"Python {python}, torch {torch_version}, detectron2 {detectron}",
        "hardware": f"CPU with {cpu}; {gpu} (from the log)",
        "date": ended.date().isoformat(),
    }
