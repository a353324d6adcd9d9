"""Jobs on a disk that fills up: whole files or none, one clear message, and then a second start."""

import os
import random
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cases import SECONDS, Case, start, wait
from jobs import Job
from kills import Reference, finish
from outcomes import WRONG, Outcome

WORDS = ("disk is full", "No space left", "File too large", "cannot write", "cannot keep", "quota")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a file system of ``size`` bytes at ``folder``; yields whether that was allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _limited(job: Job, folder: Path, size: int) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return job.run(folder)


def fill_disk(name: str, job: Job, reference: Reference) -> Case:
    """Let the disk fill up at a random point of a job, then give it space and start it again."""

    def case(rng: random.Random, folder: Path) -> Outcome:
        place, log = folder / "disk", folder / "log.txt"
        place.mkdir()
        size = max(4096, int(reference.size * rng.uniform(0, 1.2)))
        with small_disk(place, size) as mounted:
            if mounted:
                status = wait(start(lambda: job.run(place), log), SECONDS)
            else:
                status = wait(start(lambda: _limited(job, place, size // 3), log), SECONDS)
            said = log.read_text(errors="replace")
            if status is None or status not in (0, 1):
                last = said.strip().splitlines()[-2:]
                return Outcome(WRONG, f"{name}: ended with {status}: {last}"[:500])
            if status == 1 and not any(word in said for word in WORDS):
                return Outcome(WRONG, f"{name}: no word of the disk: {said[-300:]}")
            if mounted:
                size = 20 * reference.size + (64 << 20)
                more = ["mount", "-o", f"remount,size={size}", str(place)]
                subprocess.run(more, check=True)
            return finish(name, job, place, log, reference.result)

    return case
