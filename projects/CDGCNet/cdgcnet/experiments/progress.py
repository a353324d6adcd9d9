"""Runs missing jobs one after another, with a progress bar over all of their iterations."""

import time
from collections.abc import Sequence
from pathlib import Path

from cdgcnet.experiments.jobs import Job
from cdgcnet.experiments.run_folder import resumed_iteration, trained_iterations
from cdgcnet.experiments.runner import Runner
from cdgcnet.utils.progress import progress


def run_jobs(runner: Runner, jobs: Sequence[Job], deadline: float | None) -> list[str]:
    """Run all missing jobs; returns one message per job that failed."""
    failures = []
    progress = Progress(runner.missing_iterations(jobs))
    runner.log = progress.bar.write
    with progress.bar:
        for i, job in enumerate(jobs):
            if runner.done(job):
                continue
            if deadline is not None and time.monotonic() > deadline:
                progress.bar.write(
                    "--time-budget is used up; run the same command again to continue"
                )
                break
            folder = runner.run_dir(job)
            progress.begin(job, folder)
            try:
                runner.run_job(job, jobs[i:], deadline=deadline, poll=progress.look)
            except TimeoutError:
                progress.bar.write(
                    f"{job.row.name}, seed {job.seed}: stopped, --time-budget is used up; the "
                    "same command resumes from the last checkpoint"
                )
                break
            except (OSError, RuntimeError, ValueError) as error:
                failures.append(str(error))
                first = str(error).splitlines()[0]
                progress.bar.write(f"failed, continuing with the others: {first}")
            progress.look(folder, now=True)
    return failures


class Progress:
    """A progress bar over all missing iterations, fed from the runs' ``metrics.json``."""

    def __init__(self, total: int):
        # smoothing 0: the ETA follows the average, which includes evaluations.
        self.bar = progress(total=total, leave=True, smoothing=0)
        self.seen: dict[Path, int] = {}
        self.looked = 0.0

    def begin(self, job: Job, folder: Path) -> None:
        self.bar.set_description(f"{job.row.name}, seed {job.seed}")
        self.seen.setdefault(folder, resumed_iteration(folder))

    def look(self, folder: Path, now: bool = False) -> None:
        if not now and time.monotonic() - self.looked < 2:
            return
        self.looked = time.monotonic()
        if folder in self.seen:
            # A resumed run repeats the iterations after its checkpoint; the bar waits for it.
            reached = max(trained_iterations(folder), self.seen[folder])
            self.bar.update(reached - self.seen[folder])
            self.seen[folder] = reached
