"""Runs rows side by side, each in a process of its own.

A process of its own makes a row's peak memory its own, and a row that dies takes no other with
it. The process writes its record itself, so a finished row is kept whatever happens to the rest.
"""

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cdgcnet.comparison.options import Schedule
from cdgcnet.comparison.rows import Row
from cdgcnet.utils.worker import held_interrupts

ROW_BYTES = 3 << 29  # a process with PyTorch, Detectron2 and the largest default head, rounded up


@dataclass(frozen=True)
class Job:
    """A row to train with one seed.

    Attributes:
        row, seed: what to train.
        record: where its result goes.
    """

    row: Row
    seed: int
    record: Path


@dataclass(frozen=True)
class Setting:
    """What all jobs share.

    Attributes:
        train, test: folders of the feature caches.
        dataset: registered name, for the class names.
        schedule: of the training.
        instrument, metadata: of the records.
        threads: per process.
    """

    train: Path
    test: Path
    dataset: str
    schedule: Schedule
    instrument: dict[str, Any]
    metadata: dict[str, str]
    threads: int


def run_job(job: Job, setting: Setting, progress: Callable[[int], None]) -> None:
    """Train and score one row, and write its record."""
    from cdgcnet.comparison.feature_cache import FeatureStore
    from cdgcnet.comparison.records import Record, save_record
    from cdgcnet.comparison.training import evaluate, train

    row = job.row
    head, cost = train(row, FeatureStore(setting.train), setting.schedule, job.seed, progress)
    test = FeatureStore(setting.test)
    metrics = evaluate(row, head, test, setting.dataset, setting.schedule.precision)
    record = Record(
        row.label, row.kind, row.context, row.head, job.seed, row.settings(),
        setting.instrument, metrics, cost, setting.metadata,
    )  # fmt: skip
    save_record(job.record, record)


def _child(job: Job, setting: Setting, steps: Any, errors: Connection) -> None:
    import torch

    from cdgcnet.data.datasets import register_all, register_folders
    from cdgcnet.engine.subnormals import flush_subnormals

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    torch.set_num_threads(setting.threads)
    flush_subnormals()
    warnings.filterwarnings("ignore", category=FutureWarning)

    def progress(count: int) -> None:
        with steps.get_lock():
            steps.value += count

    try:
        register_all()
        register_folders(job.row.cfg)
        run_job(job, setting, progress)
    except Exception as error:  # reported by the parent; the other rows go on
        errors.send(f"{type(error).__name__}: {error}")


@dataclass
class _Running:
    job: Job
    process: BaseProcess
    errors: Connection
    started: float


def _outcome(running: _Running) -> str | None:
    """The message of a job that failed."""
    code = running.process.exitcode
    try:
        return str(running.errors.recv())
    except EOFError:  # it closed the pipe without a message
        pass
    if code and code < 0:
        name = signal.Signals(-code).name
        memory = "; is the memory full? Use fewer --jobs" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{memory}"
    return f"its process ended with exit code {code}" if code else None


def run_jobs(
    jobs: Sequence[Job],
    setting: Setting,
    parallel: int,
    deadline: float | None,
    on_steps: Callable[[int], None],
) -> Iterator[tuple[Job, str | None]]:
    """Run jobs in their order, ``parallel`` at a time; yields each as it ends.

    Args:
        jobs: to run.
        setting: what they share.
        parallel: processes at a time.
        deadline: of ``time.monotonic``; no job is started that the longest one so far would take
            past it.
        on_steps: called with the number of steps that all processes made since the last call.

    Yields:
        The job, and a message if it failed.
    """
    context = multiprocessing.get_context("spawn")
    steps = context.Value("q", 0)
    waiting, running = list(jobs), list[_Running]()
    longest, seen = 0.0, 0
    try:
        while waiting or running:
            late = deadline is not None and time.monotonic() + longest > deadline
            if late:
                waiting.clear()
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(job, setting, steps, theirs))
                with held_interrupts():  # they stay blocked in the process
                    process.start()
                theirs.close()
                running.append(_Running(job, process, ours, time.monotonic()))
            wait([r.process.sentinel for r in running], timeout=1.0)
            on_steps(steps.value - seen)
            seen = steps.value
            for one in [r for r in running if not r.process.is_alive()]:
                running.remove(one)
                one.process.join()
                longest = max(longest, time.monotonic() - one.started)
                yield one.job, _outcome(one)
                one.errors.close()
    finally:
        for one in running:
            one.process.terminate()
            one.process.join()


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    for line in path.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None
