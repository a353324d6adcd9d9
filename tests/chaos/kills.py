"""Processes killed at random moments: started again, they give the result of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

from cases import RIGHT, SECONDS, WRONG, Case, Outcome, start, wait
from jobs import Job


def undisturbed(job: Job, folder: Path) -> tuple[object, float]:
    """The result of a run that nobody disturbs, and its seconds."""
    folder.mkdir(parents=True)
    begin = time.monotonic()
    status = wait(start(lambda: job.run(folder), folder / "log.txt"), SECONDS)
    if status != 0:
        raise RuntimeError(f"the undisturbed run failed, see {folder / 'log.txt'}")
    return job.result(folder), time.monotonic() - begin


def wait_for_file(folder: Path, pattern: str, pid: int, seconds: float) -> None:
    """Wait until the process writes another file that matches the pattern, or for some seconds."""
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


def make_case(name: str, job: Job, expected: object, seconds: float) -> Case:
    """Kill a job one to three times, then let it finish."""

    def case(rng: random.Random, folder: Path) -> Outcome:
        log = folder / "log.txt"
        for _ in range(rng.choice((1, 1, 2, 3))):
            pid = start(lambda: job.run(folder), log)
            if rng.random() < 0.5:
                time.sleep(rng.uniform(0, seconds))
                wait_for_file(folder, job.pattern, pid, seconds)
                time.sleep(rng.choice((0, 0.0005, 0.002)))
            else:
                time.sleep(rng.uniform(0, 1.1 * seconds))
            with suppress(ProcessLookupError):
                os.killpg(pid, rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            wait(pid, 20)
        status = wait(start(lambda: job.run(folder), log), SECONDS)
        if status != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-2:]
            return Outcome(WRONG, f"{name}: the last start ended with {status}: {last}"[:500])
        if job.result(folder) != expected:
            kept = folder.with_name(f"{folder.name}-wrong")
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            return Outcome(WRONG, f"{name}: another result than that of an undisturbed run")
        return Outcome(RIGHT)

    return case
