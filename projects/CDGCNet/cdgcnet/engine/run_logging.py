"""Where the messages of a run go: ``log.txt`` and stdout."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from logging import StreamHandler
from logging.handlers import MemoryHandler
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cdgcnet.engine.distributed import is_dead_worker, is_lost_connection, on_main_process
from cdgcnet.utils.progress import AboveBars

_LOGGERS = ("fvcore", "detectron2", "cdgcnet", "cdgc")


def _is_fault(record: logging.LogRecord) -> bool:
    """False for an error that ends the run with one line on stderr."""
    error = record.exc_info[1] if record.exc_info else None
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return not (known or is_lost_connection(error) or is_dead_worker(error))


def start_logging(folder: Path) -> None:
    """Log to ``log.txt`` and stdout; messages at level DEBUG, with tracebacks, to the file only.

    Args:
        folder: of the run, which is made.

    Raises:
        ValueError: if it cannot be made.
    """
    try:
        on_main_process(partial(folder.mkdir, parents=True, exist_ok=True))
    except OSError as error:
        raise ValueError(
            f"OUTPUT_DIR {folder}: the folder cannot be made ({error.strerror}); choose another one"
        ) from error
    for name in _LOGGERS:
        logger = setup_logger(str(folder), distributed_rank=comm.get_rank(), name=name)
        for handler in logger.handlers:
            if isinstance(handler, StreamHandler) and handler.stream is sys.stdout:
                handler.setLevel(logging.INFO)
                handler.setStream(AboveBars(sys.stdout))
    logging.getLogger("detectron2.engine.train_loop").addFilter(_is_fault)


@contextmanager
def held_back_messages() -> Iterator[None]:
    """Hold back what is logged until the end of the block, by which the log file is open."""
    held = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    propagated = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(held)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, propagated, strict=True):
            logger.removeHandler(held)
            if not logger.handlers:  # logging was not started
                logger.propagate = propagate
        for record in held.buffer:
            logging.getLogger(record.name).handle(record)
