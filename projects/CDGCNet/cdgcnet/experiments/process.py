"""Trains or evaluates in a child process and watches it until it ends."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdgcnet.engine.run_metadata import ROOT, UNKNOWN, run_metadata
from cdgcnet.experiments.record import RunMetadata
from cdgcnet.utils.io import atomic_write, read_json

POLL_SECONDS = 0.5
GRACE_SECONDS = 30
LAUNCHES = "launches.json"


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: exit status, or minus the signal that ended it.
        peak_memory: largest resident set in bytes, its children included.
        timed_out: whether it was ended at its deadline.
    """

    status: int
    peak_memory: int
    timed_out: bool = False


def train_command(
    config_files: Sequence[Path], options: Sequence[str], num_gpus: int = 1
) -> list[str]:
    """``python train_net.py --config-file FILE … [--num-gpus N] OPTIONS``."""
    configs = [word for path in config_files for word in ("--config-file", str(path))]
    gpus = ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
    return [sys.executable, str(ROOT / "train_net.py"), *configs, *gpus, *options]


def _signal(child: subprocess.Popen, number: int) -> None:
    """Send a signal to a process and all its children."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def run_process(
    command: Sequence[str],
    log: Path,
    *,
    deadline: float | None = None,
    poll: Callable[[], None] = lambda: None,
    inherit: Sequence[int] = (),
) -> Outcome:
    """Run a command to its end. If this process is stopped, the command is ended too.

    Args:
        command: and its arguments.
        log: its standard output and error are appended here.
        deadline: value of ``time.monotonic()`` at which it is ended.
        poll: called regularly while it runs.
        inherit: file descriptors that it keeps open.
    """
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            pass_fds=inherit,
            start_new_session=True,  # so that its own children can be ended with it
        )
    ends, timed_out = math.inf if deadline is None else deadline, False
    try:
        while True:
            # The child's own figures: getrusage would give the largest of all children so far.
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > ends:
                _signal(child, signal.SIGKILL if timed_out else signal.SIGTERM)
                ends, timed_out = time.monotonic() + GRACE_SECONDS, True
            poll()
            time.sleep(POLL_SECONDS)
    except BaseException:
        _signal(child, signal.SIGKILL)
        child.wait()
        raise
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return Outcome(child.returncode, usage.ru_maxrss * unit, timed_out and child.returncode != 0)


def tail(log: Path, lines: int = 12) -> str:
    """The end of a log, indented."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock a work folder for one process; yields the descriptor of the lock.

    A training run that inherits the descriptor keeps the lock even if its runner is killed.

    Raises:
        BlockingIOError: naming the folder, if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{folder}: another process works there; wait for it or end it"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def read_launches(folder: Path) -> list[dict[str, Any]]:
    """The processes that were started in a work folder, in order."""
    path = folder / LAUNCHES
    return read_json(path, "the processes of a work folder", list) if path.is_file() else []


def write_launches(folder: Path, launches: Sequence[dict[str, Any]]) -> None:
    with atomic_write(folder / LAUNCHES) as tmp_path:
        tmp_path.write_text(json.dumps(launches, indent=1), encoding="utf-8")


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    deadline: float | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a command in a work folder: output to ``run.txt``, run metadata to ``launches.json``.

    Raises:
        BlockingIOError: if another process works there.
    """
    with locked(folder) as lock:
        before = read_launches(folder)
        note: dict[str, Any] = run_metadata(["python", *command[1:]])
        write_launches(folder, [*before, note])
        outcome = run_process(
            command, folder / "run.txt", deadline=deadline, poll=poll, inherit=[lock]
        )
        note["peak_memory"] = outcome.peak_memory
        note["status"] = outcome.status
        write_launches(folder, [*before, note])
    return outcome


def combined(launches: Sequence[dict[str, Any]]) -> RunMetadata:
    """Metadata of a run that several processes completed, each resuming the one before."""

    def distinct(key: str, joined: str = ", then ") -> str:
        return joined.join(dict.fromkeys(str(note.get(key, UNKNOWN)) for note in launches))

    commands = (note["command"].replace(" --resume", "") for note in launches)
    return {
        "command": " && ".join(dict.fromkeys(commands)),
        "commit": distinct("commit"),
        "versions": distinct("versions"),
        "hardware": distinct("hardware"),
        "date": launches[-1]["date"],
    }
