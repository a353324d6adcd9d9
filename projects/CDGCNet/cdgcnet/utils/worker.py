"""Worker processes that end with the process that started them."""

import multiprocessing
import os
import signal
import threading


def start_worker() -> None:
    """Initializer of a process pool: Ctrl-C ends the worker, and so does the end of its parent.

    Without it, the workers of a parent that was killed wait forever for their next task.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None  # only a worker calls this

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
