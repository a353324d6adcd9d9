"""Where the messages of a run go: ``log.txt`` and stdout."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import FileHandler, StreamHandler
from logging.handlers import MemoryHandler
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cdgcnet.engine.distributed import is_dead_worker, is_lost_connection
from cdgcnet.utils.progress import AboveBars

_LOGGERS = ("fvcore", "detectron2", "cdgcnet", "cdgc")
_FORMAT = logging.Formatter(  # that of Detectron2's log files
    "[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt="%m/%d %H:%M:%S"
)


class _HeldMessages(MemoryHandler):
    """Keeps all messages until its target is set and it is flushed."""

    def __init__(self) -> None:
        super().__init__(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)


class _LogFile(FileHandler):
    """The ``log.txt`` of this process."""

    def __init__(self, folder: Path):
        rank = comm.get_rank()
        name = "log.txt" if rank == 0 else f"log.txt.rank{rank}"
        super().__init__(folder / name, "a", encoding="utf-8")
        self.setFormatter(_FORMAT)


def _is_fault(record: logging.LogRecord) -> bool:
    """False for an error that ends the run with one line on stderr."""
    error = record.exc_info[1] if record.exc_info else None
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return not (known or is_lost_connection(error) or is_dead_worker(error))


@contextmanager
def logging_after_checks() -> Iterator[None]:
    """Hold back what the checks in the block log, and log it when they have passed.

    From then on messages go to stdout, from INFO on, and all of them to the file of
    :func:`open_log`. If a check fails, messages go where they went before.
    """
    held = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        _remove_handlers(logger)  # an earlier run of this process is over
    before = [(list(logger.handlers), logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [held]
        logger.propagate = False
    passed = False
    try:
        yield
        passed = True
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.propagate = propagate
        if passed:
            _start_logging()
        for record in held.buffer:
            logging.getLogger(record.name).handle(record)


def _start_logging() -> None:
    held = _HeldMessages()
    for name in _LOGGERS:
        logger = setup_logger(distributed_rank=comm.get_rank(), name=name)
        logger.propagate = False
        for handler in logger.handlers:
            if isinstance(handler, StreamHandler) and handler.stream is sys.stdout:
                handler.setLevel(logging.INFO)
                handler.setStream(AboveBars(sys.stdout))
        logger.addHandler(held)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_fault)


def open_log(folder: Path) -> None:
    """Write what a run has logged so far, and all later messages, to ``log.txt``.

    Called on all processes as soon as nothing can refuse the run any more: a refused one leaves no
    file. Programs without :func:`logging_after_checks` keep their own logging.

    Args:
        folder: of the run, which exists.
    """
    comm.synchronize()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    held = next((h for h in loggers[0].handlers if isinstance(h, _HeldMessages)), None)
    if held is None:
        return
    file = _LogFile(folder)
    held.setTarget(file)
    held.flush()
    for logger in loggers:
        _remove_handlers(logger)
        logger.addHandler(file)


def _remove_handlers(logger: logging.Logger) -> None:
    """Remove the handlers that the functions above have added, except for stdout."""
    for handler in list(logger.handlers):
        if isinstance(handler, (_HeldMessages, _LogFile)):
            logger.removeHandler(handler)
            handler.close()
