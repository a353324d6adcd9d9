"""The classes of an own dataset: "name" or "name R G B", one a line."""

import re
from collections.abc import Sequence
from pathlib import Path

from cdgcnet.data.datasets.catalog import UNKNOWN_LABEL, color_map

MAX_CLASSES = UNKNOWN_LABEL  # ids 0 to 253: the label of what is unknown must not be a class

Color = tuple[int, int, int]

_COLORED = re.compile(r"(.*?)((?:\s+-?\d+){3})", re.ASCII)


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without surrounding blanks; empty ones are left out.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing or no UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a mark in front
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable UTF-8 text file ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def parse_classes(lines: Sequence[str]) -> tuple[list[str], list[Color]]:
    """Names and RGB colors of "name" or "name R G B" lines; the position is the class id.

    Raises:
        ValueError: naming the line, for a bad color, a missing or repeated name, or a bad count.
    """
    if not 1 <= len(lines) <= MAX_CLASSES:
        raise ValueError(f"{len(lines)} classes; expected 1 to {MAX_CLASSES}")
    defaults = color_map(len(lines) + 1)[1:]  # its first color, black, would hide a class
    names: list[str] = []
    colors: list[Color] = []
    for number, line in enumerate(lines, start=1):
        name, color = line, defaults[number - 1]
        if match := _COLORED.fullmatch(f" {line}"):
            red, green, blue = (int(word) for word in match[2].split())
            name, color = match[1].strip(), (red, green, blue)
            if not name:
                raise ValueError(f"class {number}, {line!r}, is a color without a name")
            if not all(0 <= c <= 255 for c in color):
                raise ValueError(f"class {number}, {line!r}: expected a color R G B of 0 to 255")
        if name in names:
            raise ValueError(f"classes {names.index(name) + 1} and {number} are both {name!r}")
        names.append(name)
        colors.append(color)
    return names, colors
