"""One thread that does all work of a network, and a bounded number of requests that wait for it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """As many requests as allowed are being worked on or waiting."""


class Worker:
    """Runs functions one after another in a single thread."""

    def __init__(self, queue_size: int):
        """
        Args:
            queue_size: requests that may wait behind the one that is being worked on.
        """
        self.queue_size = queue_size
        self.accepted = 0  # requests from their upload until their answer
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """A place in the queue, until the work begun in it has ended.

        Raises:
            QueueFull: at once, if there is none.
        """
        with self._lock:
            if self.accepted > self.queue_size:
                raise QueueFull
            self.accepted += 1
        place = Place(self)
        try:
            yield place
        finally:
            place.leave()

    def close(self) -> None:
        """Finish what is running and drop what waits."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class Place:
    """A place in the queue of a :class:`Worker`."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._future: Future | None = None

    async def run(self, function: Callable[[], T]) -> T:
        """The result of ``function()``, called by the thread of the worker.

        If the task is cancelled while it waits, the function is never called; if it is called
        already, its result is dropped.
        """
        self._future = self._worker._thread.submit(function)
        return await asyncio.wrap_future(self._future)

    def leave(self) -> None:
        # A function that runs on without its client still keeps the thread, hence its place.
        if self._future is None or self._future.cancel() or self._future.done():
            self._release()
        else:
            self._future.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        with self._worker._lock:
            self._worker.accepted -= 1
