"""The kinds of values that a configuration key may have."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MAX_PIXELS = 1_000_000_000_000


def show(value: Any) -> str:
    """``repr`` of a value of any size in at most about a hundred characters."""
    shorter = reprlib.Repr()
    shorter.maxstring = shorter.maxother = 80
    shorter.maxlist = shorter.maxtuple = shorter.maxdict = 8
    try:
        return shorter.repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        return f"an integer of {value.bit_length()} bits"


class Rule(Protocol):
    """Accepts or refuses the value of one key."""

    @property
    def expected(self) -> str:
        """What a message says after "expected"."""

    def accepts(self, value: Any) -> bool:
        """Whether the key may have this value."""


@dataclass(frozen=True)
class Flag:
    """True or False."""

    expected: str = "True or False"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    choices: tuple[Any, ...]

    @property
    def expected(self) -> str:
        return f"one of {list(self.choices)}" if len(self.choices) > 1 else repr(self.choices[0])

    def accepts(self, value: Any) -> bool:
        return any(type(value) is type(choice) and value == choice for choice in self.choices)


@dataclass(frozen=True)
class Integer:
    """A whole number within limits, both included."""

    low: int
    high: int

    @property
    def expected(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def accepts(self, value: Any) -> bool:
        return type(value) is int and self.low <= value <= self.high


@dataclass(frozen=True)
class Number:
    """A finite number within limits, both included unless ``above`` leaves out the lower one."""

    low: float
    high: float
    above: bool = False  # the lower limit itself is not allowed
    optional: bool = False  # None is allowed

    @property
    def expected(self) -> str:
        low, high = f"{self.low:g}", f"{self.high:g}"
        limits = f"above {low}, at most {high}" if self.above else f"from {low} to {high}"
        return f"a number {limits}{', or None' if self.optional else ''}"

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if type(value) not in (int, float):  # a bool is no number
            return False
        return self.low <= value <= self.high and not (self.above and value == self.low)


@dataclass(frozen=True)
class Text:
    """A string."""

    empty: bool = True  # "" is allowed

    @property
    def expected(self) -> str:
        return "a text" if self.empty else "a text that is not empty"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and "\0" not in value and (self.empty or bool(value.strip()))


@dataclass(frozen=True)
class Items:
    """A list or tuple with one rule for all items."""

    item: Rule
    lengths: tuple[int, ...] | None = None  # None: any length
    low: int = 0  # the least length
    names: str = ""  # of the items, "[height, width]"
    distinct: bool = False

    @property
    def expected(self) -> str:
        if self.names:
            start = self.names
        elif self.lengths:
            start = f"a list of {' or '.join(map(str, self.lengths))}"
        else:
            start = "a list that is not empty" if self.low else "a list"
        each = ", without repetition" if self.distinct else ""
        return f"{start}, each {self.item.expected}{each}"

    def accepts(self, value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) < self.low:
            return False
        if self.lengths and len(value) not in self.lengths:
            return False
        if not all(self.item.accepts(item) for item in value):
            return False
        return not self.distinct or len(set(value)) == len(value)


@dataclass(frozen=True)
class ShareOrCount:
    """A share below 1, or a whole number."""

    expected: str = "a pixel count, or a share of the batch below 1"

    def accepts(self, value: Any) -> bool:
        if type(value) not in (int, float) or not 0 <= value <= MAX_PIXELS:
            return False
        return value < 1 or value == int(value)


@dataclass(frozen=True)
class Mappings:
    """A list of mappings, whose keys are checked where they are used."""

    expected: str = "a list of mappings such as {NAME: …, IMAGES: …} (docs/own_data.md)"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(isinstance(v, Mapping) for v in value)


@dataclass(frozen=True)
class Scores:
    """Detectron2's list of expected results."""

    expected: str = "a list of [task, metric, score, tolerance]"

    def accepts(self, value: Any) -> bool:
        number = Number(-1e9, 1e9)
        return isinstance(value, (list, tuple)) and all(
            isinstance(row, (list, tuple))
            and len(row) == 4
            and all(isinstance(name, str) for name in row[:2])
            and all(number.accepts(v) for v in row[2:])
            for row in value
        )
