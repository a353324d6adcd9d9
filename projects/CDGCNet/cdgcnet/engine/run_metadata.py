"""Where a number comes from: command, commit, versions, hardware, date."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import detectron2
import torch

from cdgcnet import __version__

ROOT = Path(__file__).resolve().parents[4]
UNKNOWN = "not recorded"


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, cwd=ROOT, check=False)
    except FileNotFoundError:  # git is not installed
        return ""
    return done.stdout.strip()


def commit() -> str:
    """The checked-out commit, and whether tracked files other than results differ from it.

    The environment variable CDGCNET_COMMIT names it where files were copied without their
    repository, or into one at another commit.
    """
    if not (ROOT / "projects" / "CDGCNet").is_dir():
        return f"none, installed as cdgcnet {__version__}"
    if named := os.environ.get("CDGCNET_COMMIT"):
        return named
    found = _git("rev-parse", "--short", "HEAD") or UNKNOWN
    measured = (":!benchmarks/results", ":!results")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *measured)
    return f"{found} with uncommitted changes" if changed else found


def hardware() -> str:
    """Names of the processor and, if there is one, the GPU."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {torch.get_num_threads()} thread(s) per process; {gpu}"


def plain_command(command: Sequence[str]) -> str:
    """A command as another user would type it, without OUTPUT_DIR and absolute paths."""
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


def run_metadata(command: Sequence[str]) -> dict[str, str]:
    """Describe a run.

    Args:
        command: of the process that measures.
    """
    return {
        "command": plain_command(command),
        "commit": commit(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"detectron2 {detectron2.__version__}",
        "hardware": hardware(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
