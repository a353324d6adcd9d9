"""Processes killed at random moments: started again, they give the result of an undisturbed run."""

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cases import SECONDS, Case, start, wait
from jobs import Job
from outcomes import RIGHT, WRONG, Outcome


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run of a job gives.

    Attributes:
        result: of the job.
        seconds: it took.
        size: in bytes, of the files that it leaves.
    """

    result: object
    seconds: float
    size: int


def undisturbed(job: Job, folder: Path) -> Reference:
    folder.mkdir(parents=True)
    begin = time.monotonic()
    status = wait(start(lambda: job.run(folder), folder / "log.txt"), SECONDS)
    if status != 0:
        raise RuntimeError(f"the undisturbed run failed, see {folder / 'log.txt'}")
    seconds = time.monotonic() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Reference(job.result(folder), seconds, size)


def finish(name: str, job: Job, folder: Path, log: Path, expected: object) -> Outcome:
    """Start an interrupted job again; it must end with the result of an undisturbed run."""
    status = wait(start(lambda: job.run(folder), log), SECONDS)
    if status != 0:
        last = log.read_text(errors="replace").strip().splitlines()[-2:]
        return Outcome(WRONG, f"{name}: the last start ended with {status}: {last}"[:500])
    found = job.result(folder)
    if found != expected:
        return Outcome(WRONG, f"{name}: expected {expected}, found {found}"[:1000])
    return Outcome(RIGHT)


def wait_for_file(folder: Path, pattern: str, seconds: float) -> None:
    """Wait until a process writes another file that matches the pattern, or for some seconds."""
    before = {(p, p.stat().st_size) for p in folder.glob(pattern) if p.exists()}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            now = {(p, p.stat().st_size) for p in folder.glob(pattern)}
        except FileNotFoundError:
            return  # renamed between the two calls: a good moment
        if now - before:
            return
        time.sleep(0.0005)


def wait_for_moment(job: Job, folder: Path, rng: random.Random, seconds: float) -> None:
    """Wait for a random time or, in half of the cases, for a file that is just being written."""
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, seconds))
        wait_for_file(folder, job.pattern, seconds)
        time.sleep(rng.choice((0, 0.0005, 0.002)))
    else:
        time.sleep(rng.uniform(0, 1.1 * seconds))


def kill_job(name: str, job: Job, reference: Reference) -> Case:
    """Kill a job one to three times, then let it finish."""

    def case(rng: random.Random, folder: Path) -> Outcome:
        log = folder / "log.txt"
        for _ in range(rng.choice((1, 1, 2, 3))):
            pid = start(lambda: job.run(folder), log)
            wait_for_moment(job, folder, rng, reference.seconds)
            with suppress(ProcessLookupError):
                os.killpg(pid, rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            wait(pid, 20)
        return finish(name, job, folder, log, reference.result)

    return case


def children(pid: int) -> list[int]:
    """The process ids of the children of a process."""
    with suppress(OSError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def kill_worker(name: str, job: Job, reference: Reference) -> Case:
    """Kill one worker process of a job, which must then end by itself; then let it finish."""

    def case(rng: random.Random, folder: Path) -> Outcome:
        log = folder / "log.txt"
        pid = start(lambda: job.run(folder, workers=2), log)
        wait_for_moment(job, folder, rng, reference.seconds)
        end = time.monotonic() + 2 * reference.seconds
        while not (workers := children(pid)) and time.monotonic() < end:
            time.sleep(0.0005)
        killed = rng.choice(workers) if workers else 0
        if killed:
            with suppress(ProcessLookupError):
                os.kill(killed, signal.SIGKILL)
        status = wait(pid, SECONDS)
        said = log.read_text(errors="replace")
        if status not in (0, 1) or (status == 1 and "was killed" not in said):
            last = said.strip().splitlines()[-2:]
            return Outcome(
                WRONG, f"{name}: a worker was killed, the job ended with {status}: {last}"
            )
        return finish(name, job, folder, log, reference.result)

    return case
