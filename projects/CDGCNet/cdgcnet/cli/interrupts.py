"""Makes Ctrl-C one line on stderr and exit code 130 from the start; imports very little itself."""

import _signal as signal  # type: ignore[import-not-found]  # signal itself imports much more
import os
import sys

INTERRUPTED = 130  # the exit code that a shell gives to a process that SIGINT has ended


def exit_on_interrupt(prog: str) -> None:
    """Let Ctrl-C end the process at once, until :func:`raise_on_interrupt`.

    During imports Python would print a traceback, or print the exception and go on.

    Args:
        prog: the name of the command in the message.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background job ignores it
        signal.signal(signal.SIGINT, lambda number, frame: _exit(prog))


def raise_on_interrupt(prog: str) -> None:
    """Let Ctrl-C raise KeyboardInterrupt, which cleans up, except while PyTorch is imported.

    Nothing is begun by then, and an exception in the middle of PyTorch's C++ code may abort the
    process or turn into another error.

    Args:
        prog: the name of the command in the message.
    """

    def interrupt(number: int, frame: object) -> None:
        spec = getattr(sys.modules.get("torch"), "__spec__", None)
        if getattr(spec, "_initializing", False):
            _exit(prog)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, interrupt)


def _exit(prog: str) -> None:
    """End the process without cleaning up; of several that torchrun started only one reports."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, f"{prog}: interrupted\n".encode())
    os._exit(INTERRUPTED)
