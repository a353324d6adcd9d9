"""Worker processes that end with the process that started them, and on Ctrl-C without a message."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_CAN_BLOCK = hasattr(signal, "pthread_sigmask")  # not on Windows


class WorkerPool(ProcessPoolExecutor):
    """A pool of fresh processes; a forked one could hang if threads, as OpenCV's, are running.

    Args:
        workers: number of processes.
        initializer: called in each of them; it calls :func:`start_worker`.
        initargs: its arguments.
    """

    def __init__(
        self,
        workers: int,
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        context = multiprocessing.get_context("spawn")
        super().__init__(workers, context, initializer or start_worker, initargs)

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        with held_interrupts():  # this may start a process
            return super().submit(function, *args, **kwargs)


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C until the end of the block, and longer in processes that it starts.

    There it waits for :func:`start_worker`: in the imports before, it would print a traceback.
    """
    if not _CAN_BLOCK:
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # whose start ends the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(on_interrupt: signal.Handlers = signal.SIG_IGN) -> None:
    """Initializer of a process pool: the worker ends with its parent.

    Without it, the workers of a parent that was killed wait forever for their next task.

    Args:
        on_interrupt: what Ctrl-C does: with ``SIG_IGN`` the parent decides, which also gets it;
            with ``SIG_DFL`` the worker ends at once, for jobs that take long.
    """
    signal.signal(signal.SIGINT, on_interrupt)
    if _CAN_BLOCK:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None  # only a worker calls this

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
