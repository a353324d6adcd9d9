"""Runs missing jobs, several at once if asked, with a progress bar over all of their iterations."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cdgcnet.experiments.jobs import Job
from cdgcnet.experiments.run_folder import resumed_iteration, trained_iterations
from cdgcnet.experiments.runner import Runner
from cdgcnet.utils.progress import progress


class _Stopped(Exception):
    """Ends the process of a job, because the runner itself is being ended."""


def run_jobs(
    runner: Runner, jobs: Sequence[Job], deadline: float | None, at_once: int = 1
) -> list[str]:
    """Run all missing jobs; returns one message per job that failed.

    Args:
        runner: of one profile and split.
        jobs: begun in this order; those that share a training run follow each other.
        deadline: value of ``time.monotonic()`` at which the running processes are ended.
        at_once: how many training runs go on at the same time.
    """
    shared: dict[Path, list[Job]] = {}
    for job in jobs:
        if not runner.done(job):
            shared.setdefault(runner.run_dir(job), []).append(job)
    failures: list[str] = []
    progress = Progress(runner.missing_iterations(jobs))
    runner.log = progress.bar.write
    used_up, stop = threading.Event(), threading.Event()

    def poll(folder: Path) -> None:
        if stop.is_set():
            raise _Stopped
        progress.look(folder)

    def run(folder: Path, pending: Sequence[Job]) -> None:
        for i, job in enumerate(pending):
            if used_up.is_set() or stop.is_set():
                return
            if runner.done(job):
                continue
            if deadline is not None and time.monotonic() > deadline:
                used_up.set()
                return
            progress.begin(job, folder)
            try:
                runner.run_job(job, pending[i:], deadline=deadline, poll=poll)
            except TimeoutError:
                used_up.set()
                progress.bar.write(
                    f"{job.row.name}, seed {job.seed}: stopped, --time-budget is used up; the "
                    "same command resumes from the last checkpoint"
                )
            except (OSError, RuntimeError, ValueError) as error:
                failures.append(str(error))
                first = str(error).splitlines()[0]
                progress.bar.write(f"failed, continuing with the others: {first}")
            progress.look(folder, now=True)

    with progress.bar, ThreadPoolExecutor(at_once) as pool:
        begun = [pool.submit(run, folder, pending) for folder, pending in shared.items()]
        try:
            for future in as_completed(begun):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        if used_up.is_set():
            progress.bar.write("--time-budget is used up; run the same command again to continue")
    return failures


class Progress:
    """A progress bar over all missing iterations, fed from the runs' ``metrics.json``."""

    def __init__(self, total: int):
        # smoothing 0: the ETA follows the average, which includes evaluations.
        self.bar = progress(total=total, leave=True, smoothing=0)
        self.seen: dict[Path, int] = {}
        self.looked: dict[Path, float] = {}
        self.lock = threading.Lock()

    def begin(self, job: Job, folder: Path) -> None:
        with self.lock:
            self.bar.set_description(f"{job.row.name}, seed {job.seed}")
            self.seen.setdefault(folder, resumed_iteration(folder))

    def look(self, folder: Path, now: bool = False) -> None:
        if not now and time.monotonic() - self.looked.get(folder, 0.0) < 2:
            return
        with self.lock:
            self.looked[folder] = time.monotonic()
            if folder in self.seen:
                # A resumed run repeats the iterations after its checkpoint; the bar waits for it.
                reached = max(trained_iterations(folder), self.seen[folder])
                self.bar.update(reached - self.seen[folder])
                self.seen[folder] = reached
