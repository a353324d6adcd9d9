"""Turns a user's errors into one line on stderr and an exit code."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from cdgcnet.cli.interrupts import INTERRUPTED


class UsageError(Exception):
    """Arguments that do not go together; reported with the usage and exit code 2."""


def run_guarded(function: Callable, args: argparse.Namespace) -> int:
    """Call ``function(args)`` and report what a user can mend without a traceback.

    The traceback goes to the "cdgcnet" logger at level DEBUG, which a run's log file holds. Other
    exceptions are faults of the program and keep their traceback on stderr.

    Args:
        function: returns an exit code, or None for 0.
        args: has ``prog``, the name of the command in messages.

    Returns:
        The exit code: that of ``function``, 1 after an error, 130 after Ctrl-C.
    """
    try:
        return function(args) or 0
    except KeyboardInterrupt:
        _report(f"{args.prog}: interrupted")
        return INTERRUPTED
    except (ValueError, OSError, MemoryError) as error:
        logging.getLogger("cdgcnet").debug("Stopped by this error:", exc_info=True)
        _report(f"{args.prog}: error: {str(error) or type(error).__name__}")
        return 1
    except ModuleNotFoundError as error:
        # Detectron2 is not on the package index, so pip cannot install it along with CDGCNet.
        if error.name is None or error.name.split(".")[0] != "detectron2":
            raise
        _report(
            f"{args.prog}: error: Detectron2 is not installed; "
            "run `python -m cdgcnet install-detectron2`"
        )
        return 1


def deliver_lost_interrupts() -> None:
    """Deliver Ctrl-C again where Python only prints it and carries on.

    It does so in the callbacks of weak references, which every import runs, and in ``__del__``.
    """
    print_it = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_type is not KeyboardInterrupt:
            print_it(unraisable)
            return
        # Sent again once the callback has ended, as a signal, which also ends a wait.
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook


def _report(message: str) -> None:
    """Print to stderr, once for all processes of a distributed run.

    Names of files may hold any character; none of them controls the terminal.
    """
    message = "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in message
    )
    distributed = sys.modules.get("cdgcnet.engine.distributed")
    if distributed is None:
        print(message, file=sys.stderr)
    elif distributed.may_report_error():
        print(message + distributed.process_name(), file=sys.stderr)
