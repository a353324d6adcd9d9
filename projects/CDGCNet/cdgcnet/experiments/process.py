"""One training or evaluation as a process of its own, watched until it ends."""

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

from cdgcnet.experiments.run_metadata import ROOT, UNKNOWN, circumstances

POLL_SECONDS = 0.5
GRACE_SECONDS = 30
LAUNCHES = "launches.json"


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: 0, an exit status, or minus the signal that ended it.
        peak_memory: its largest resident set, its own children's included, in bytes.
        timed_out: whether it was ended because its time was up.
    """

    status: int
    peak_memory: int
    timed_out: bool = False


def train_command(config: Path, options: Sequence[str], num_gpus: int = 1) -> list[str]:
    """``python train_net.py --config-file CONFIG [--num-gpus N] OPTIONS``."""
    gpus = ["--num-gpus", str(num_gpus)] if num_gpus > 1 else []
    script = [sys.executable, str(ROOT / "train_net.py")]
    return [*script, "--config-file", str(config), *gpus, *options]


def _signal(child: subprocess.Popen, number: int) -> None:
    """A signal to a process and all its children."""
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
    """Run a command to its end; if this process is stopped, the command is ended too.

    Args:
        command: and its arguments.
        log: gets its standard output and error, behind what is there.
        deadline: ``time.monotonic()`` at which it is ended.
        poll: called while it runs.
        inherit: file descriptors it keeps open.
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
def holding(folder: Path) -> Iterator[int]:
    """Keep a work folder to one process at a time, gives the descriptor of its lock.

    A training that inherits the descriptor holds the folder even if its runner is killed.

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


# ---------------------------------------------------------------- what was launched in a folder
def read_launches(folder: Path) -> list[dict[str, Any]]:
    """The processes started in a work folder, in order; [] if none was by the runner."""
    path = folder / LAUNCHES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def write_launches(folder: Path, launches: Sequence[dict[str, Any]]) -> None:
    path = folder / LAUNCHES
    tmp_path = path.with_suffix(".part")
    tmp_path.write_text(json.dumps(launches, indent=1), encoding="utf-8")
    tmp_path.replace(path)


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    deadline: float | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Outcome:
    """:func:`run_process` in a work folder, noted in its ``launches.json``; output in ``run.txt``.

    Raises:
        BlockingIOError: if another process works there.
    """
    with holding(folder) as lock:
        before = read_launches(folder)
        note: dict[str, Any] = circumstances(["python", *command[1:]])
        write_launches(folder, [*before, note])
        outcome = run_process(
            command, folder / "run.txt", deadline=deadline, poll=poll, inherit=[lock]
        )
        note["peak_memory"] = outcome.peak_memory
        note["status"] = outcome.status
        write_launches(folder, [*before, note])
    return outcome


def combined(launches: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Circumstances of a number that several processes, each going on from the last, made."""

    def distinct(key: str, joined: str = ", then ") -> str:
        return joined.join(dict.fromkeys(str(note.get(key, UNKNOWN)) for note in launches))

    commands = (note["command"].replace(" --resume", "") for note in launches)
    return {
        "command": " && ".join(dict.fromkeys(commands)),
        **{key: distinct(key) for key in ("commit", "versions", "hardware")},
        "date": launches[-1]["date"],
    }
