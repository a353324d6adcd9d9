"""Which class the names of an annotation file belong to."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cdgcnet.data.datasets.catalog import IGNORE_LABEL
from cdgcnet.data.datasets.custom import Color, parse_classes, read_lines

IGNORE, SKIP = "(ignore)", "(skip)"
_SHOWN = 20


def read_mapping(path: Path) -> dict[str, str]:
    """Read lines "NAME -> CLASS"; in place of a class, "(ignore)" or "(skip)".

    Raises:
        FileNotFoundError, ValueError: naming the file and the line.
    """
    mapping: dict[str, str] = {}
    for line in read_lines(path):
        name, arrow, target = (part.strip() for part in line.rpartition("->"))
        if not (arrow and name and target):
            raise ValueError(f"{path}: expected lines NAME -> CLASS, found {line!r}")
        if name in mapping:
            raise ValueError(f"{path}: {name!r} is mapped twice")
        mapping[name] = target
    return mapping


@dataclass(frozen=True)
class ClassTable:
    """The classes of an import, and what other names stand for.

    Attributes:
        names, colors: of each class; the position is its id.
        mapping: name in the annotation file -> class, "(ignore)" or "(skip)".
    """

    names: list[str]
    colors: list[Color]
    mapping: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, target in self.mapping.items():
            if target not in (*self.names, IGNORE, SKIP):
                raise ValueError(
                    f"--mapping: {name!r} -> {target!r}, which is not a class; there are "
                    f"{', '.join(self.names)}, {IGNORE} and {SKIP}"
                )

    def label(self, name: str) -> int | None:
        """The class id of a name, 255 if it is ignored, None if its shapes are left out.

        Raises:
            KeyError: for a name that is neither a class nor mapped.
        """
        target = self.mapping.get(name, name)
        if target in (IGNORE, SKIP):
            return IGNORE_LABEL if target == IGNORE else None
        if target not in self.names:
            raise KeyError(name)
        return self.names.index(target)

    def require(self, names: Counter[str], what: str) -> None:
        """Refuse names that are neither a class nor mapped.

        Args:
            names: how often each occurs.
            what: what is counted, such as "shapes".

        Raises:
            ValueError: naming them, with the lines of a mapping file that would settle it.
        """
        unknown = [n for n, _ in names.most_common() if self.mapping.get(n, n) not in
                   (*self.names, IGNORE, SKIP)]  # fmt: skip
        if unknown:
            lines = [f"  {n} -> CLASS        ({names[n]} {what})" for n in unknown[:_SHOWN]]
            if len(unknown) > _SHOWN:
                lines.append(f"  … and {len(unknown) - _SHOWN} more")
            raise ValueError(
                f"{len(unknown)} names are not a class ({', '.join(self.names[:_SHOWN])}). Write a "
                "file with a line for each, and give it as --mapping; in place of CLASS, "
                f"{IGNORE} makes their pixels ignored and {SKIP} leaves them out:\n"
                + "\n".join(lines)
            )


def build_class_table(
    classes: Path | None,
    mapping: Path | None,
    found: Sequence[str],
    unlabeled: str,
) -> ClassTable:
    """The classes of a file, or those that the annotations name.

    Args:
        classes: text file as for the key CLASSES of DATASETS.FOLDERS; None: the names found, the
            class of unlabeled pixels first.
        mapping: see :func:`read_mapping`.
        found: names in the annotations, in the order in which they should become classes.
        unlabeled: the class of unlabeled pixels, or "(ignore)".

    Raises:
        FileNotFoundError, ValueError: for files or class lists with a fault.
    """
    table = read_mapping(mapping) if mapping else {}
    if classes is not None:
        lines: Iterable[str] = read_lines(classes)
        source = f"--classes {classes}"
    else:
        targets = [unlabeled, *(table.get(name, name) for name in found)]
        lines = dict.fromkeys(t for t in targets if t not in (IGNORE, SKIP))
        source = "the names in --annotations"
    try:
        names, colors = parse_classes(list(lines))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if unlabeled not in (*names, IGNORE):
        raise ValueError(
            f"--unlabeled {unlabeled}: it is not a class; there are {', '.join(names[:_SHOWN])}, "
            f"and {IGNORE}, which leaves such pixels out of training and scores"
        )
    return ClassTable(names, colors, table)
