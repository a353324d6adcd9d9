"""Makes files from source files: in parallel, resumable, each whole or not at all."""

import os
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cdgcnet.data.prepare.archives import Content, File
from cdgcnet.utils.io import atomic_write, is_unfinished
from cdgcnet.utils.progress import Bar, progress
from cdgcnet.utils.worker import WorkerPool

# Writes the target itself, with atomic_write. Worker processes must be able to import it, so it is
# a function of a module or a partial of one.
Convert = Callable[[Content, Path], None]

_HOUR = 3600.0
_PENDING_PER_WORKER = 4  # few, because their contents are held in memory


@dataclass(frozen=True)
class Job:
    """One file to make.

    Attributes:
        source: the file it is made from.
        target: the file to make.
        convert: makes the target; None takes the source as it is.
    """

    source: File
    target: Path
    convert: Convert | None = None


def place(content: Content, target: Path) -> None:
    """Write bytes, or link a file (copy it, where the file system cannot link)."""
    with atomic_write(target) as tmp_path:
        if isinstance(content, bytes):
            tmp_path.write_bytes(content)
            return
        with suppress(OSError):
            os.link(content.resolve(), tmp_path)
            return
        shutil.copyfile(content, tmp_path)


def remove_leftovers(folders: Collection[Path]) -> None:
    """Remove the unfinished files of killed runs, an hour old: no file takes so long to write."""
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if is_unfinished(path) and time.time() - path.stat().st_ctime > _HOUR:
                path.unlink(missing_ok=True)


class Runner:
    """Runs jobs and counts what they did.

    Args:
        workers: processes for conversions; 0: this process.
        overwrite: make existing files again.

    Attributes:
        made, kept: number of files written, and of files that existed already.
        failures: one message per file that could not be made, with its source.
    """

    def __init__(self, workers: int, overwrite: bool = False) -> None:
        self.workers = workers
        self.overwrite = overwrite
        self.made = 0
        self.kept = 0
        self.failures: list[str] = []

    def run(self, jobs: Sequence[Job], title: str) -> None:
        """Make the files that do not exist yet.

        Raises:
            OSError: if a target cannot be written, for example on a full disk; the next could not
                be written either.
        """
        if not jobs:
            return
        todo = [job for job in jobs if not self._is_done(job)]
        total, kept = len(jobs), len(jobs) - len(todo)
        self.kept += kept
        remove_leftovers({job.target.parent for job in todo})
        # A compressed archive can only be read forwards.
        todo.sort(key=_storage_order)
        bar = progress(desc=title, unit="file", total=total, leave=True, initial=kept)
        with bar:
            if self.workers and any(job.convert for job in todo):
                self._run_in_pool(todo, bar)
            else:
                for job in todo:
                    self._finish(job, partial(_perform, job), bar)

    def _is_done(self, job: Job) -> bool:
        if not job.target.exists():
            return False
        in_place = job.source.archive is None and job.target.samefile(job.source.name)
        return in_place or not self.overwrite

    def _run_in_pool(self, jobs: Sequence[Job], bar: Bar) -> None:
        """Read archives here, in order; convert in worker processes."""
        pool = WorkerPool(min(self.workers, len(jobs)))
        pending: dict[Future[None], Job] = {}
        try:
            for job in jobs:
                self._collect(pending, bar, at_most=_PENDING_PER_WORKER * self.workers)
                try:
                    content = job.source.content()
                except ValueError as error:
                    self._finish(job, partial(_raise, error), bar)
                    continue
                pending[pool.submit(job.convert or place, content, job.target)] = job
            self._collect(pending, bar, at_most=0)
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, perhaps because memory ran out: run the same command "
                "again with fewer --workers; finished files are kept"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _collect(self, pending: dict[Future[None], Job], bar: Bar, at_most: int) -> None:
        """Wait until no more than ``at_most`` jobs are pending."""
        while len(pending) > at_most:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                self._finish(pending.pop(future), future.result, bar)

    def _finish(self, job: Job, result: Callable[[], None], bar: Bar) -> None:
        try:
            result()
            self.made += 1
        except (OSError, ValueError, MemoryError) as error:
            if isinstance(error, OSError) and error.filename == str(job.target):
                raise
            message = str(error) or type(error).__name__
            source = str(job.source)
            self.failures.append(message if source in message else f"{source}: {message}")
        bar.update()


def _perform(job: Job) -> None:
    (job.convert or place)(job.source.content(), job.target)


def _raise(error: Exception) -> None:
    raise error


def _storage_order(job: Job) -> tuple[str, int]:
    archive = job.source.archive
    return (str(archive.path) if archive else "", job.source.position)
