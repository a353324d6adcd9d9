"""What a number needs beside it: command, commit, versions, hardware, date."""

import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import detectron2
import torch

ROOT = Path(__file__).resolve().parents[4]
UNKNOWN = "not recorded"


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


def run_metadata_from_log(folder: Path) -> dict[str, str]:
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
