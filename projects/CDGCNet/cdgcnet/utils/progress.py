"""Progress bars: redrawn on a terminal, whole lines in a log file or a pipe."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO, TypeAlias, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_DELAY = 2  # seconds; what is done by then needs no bar
_LINE_INTERVAL = 30  # seconds between the lines of a log

Bar: TypeAlias = tqdm  # the type of what progress() returns


def progress(
    items: Iterable[Item] | None = None,
    desc: str | None = None,
    unit: str = "it",
    total: int | None = None,
    shown: bool = True,
    leave: bool = False,
    **options: Any,
) -> "tqdm[Item]":
    """The same items, with a bar on stderr that shows the rate and the time left.

    A log file or a pipe gets a line every 30 seconds instead, and none if the work ends earlier.

    Args:
        items: with a length, unless ``total`` is given; None to call ``update`` instead.
        desc: what is being done.
        unit: what an item is.
        total: number of items.
        shown: False for no bar, such as in all processes but the main one.
        leave: True for a bar that appears at once and stays. Others appear after two seconds and
            are removed at the end.
        options: further ones of ``tqdm``.
    """
    if not sys.stderr.isatty():
        # ncols 0 leaves out the bar itself. With miniters 1, tqdm's monitor thread adds no lines.
        options |= {
            "file": _WholeLines(sys.stderr), "delay": _LINE_INTERVAL,
            "mininterval": _LINE_INTERVAL, "miniters": 1, "ncols": 0,
        }  # fmt: skip
    elif not leave:
        options["delay"] = _DELAY
    return tqdm(items, desc=desc, unit=unit, total=total, leave=leave, disable=not shown, **options)


class _WholeLines:
    """A stream that turns what tqdm writes to redraw a bar into whole lines."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip()  # the code that moves the cursor up
        if line:
            self.stream.write(f"{line}\n")

    def flush(self) -> None:
        self.stream.flush()


class AboveBars:
    """A stream for log messages, which it writes above the bars that are on the terminal."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, self.stream, end="")

    def flush(self) -> None:
        self.stream.flush()
