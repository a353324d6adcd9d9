"""Progress bars on a terminal, and nowhere else."""

from collections.abc import Iterable
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_DELAY = 2  # seconds; what is done by then needs no bar


def progress(
    items: Iterable[Item], desc: str, unit: str, total: int | None = None, shown: bool = True
) -> "tqdm[Item]":
    """The same items, with a bar and the time left if stderr is a terminal.

    The bar appears after two seconds and is removed at the end.

    Args:
        items: with a length, unless ``total`` is given.
        desc: what is being done.
        unit: what an item is.
        total: number of items.
        shown: False for no bar, such as in all processes but the main one.
    """
    return tqdm(
        items,
        desc=desc,
        unit=unit,
        total=total,
        delay=_DELAY,
        leave=False,
        disable=None if shown else True,
    )


class AboveBars:
    """A stream for log messages, which it writes above the bars that are on the terminal."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        tqdm.write(text, self.stream, end="")

    def flush(self) -> None:
        self.stream.flush()
