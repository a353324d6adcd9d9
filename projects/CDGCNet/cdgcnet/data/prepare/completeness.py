"""Split lists, and whether a prepared dataset is complete: its counts against the official ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tabulate import tabulate

from cdgcnet.utils.io import atomic_write

_SHOWN = 10


@dataclass(frozen=True)
class Split:
    """A split as it should be.

    Attributes:
        name: of the split.
        official: number of images it has officially.
        pairs: image and label of each of its names; the label is None in a split without labels.
        optional: not needed for training; it may be absent, but not incomplete.
        hints: what else is known about missing files.
    """

    name: str
    official: int
    pairs: Sequence[tuple[Path, Path | None]]
    optional: bool = False
    hints: Sequence[str] = field(default=())


def count(splits: Sequence[Split]) -> tuple[str, list[str]]:
    """A table of counts per split, and one message for everything that is missing."""
    rows = []
    problems: list[str] = []
    for split in splits:
        images, labels = _split_files(split)
        gone = {kind: _missing(files) for kind, files in (("images", images), ("labels", labels))}
        if split.optional and len(gone["images"]) == len(images):
            status = "absent (optional)"
        else:
            found = _problems(split, gone)
            status = "INCOMPLETE" if found else "ok"
            problems += found
        rows.append(
            [
                split.name,
                len(images) - len(gone["images"]),
                len(labels) - len(gone["labels"]) if labels or not images else "-",
                split.official,
                status,
            ]
        )
    headers = ["split", "images", "labels", "official", ""]
    return tabulate(rows, headers=headers, disable_numparse=True, stralign="left"), problems


def _split_files(split: Split) -> tuple[list[Path], list[Path]]:
    images = [image for image, _ in split.pairs]
    return images, [label for _, label in split.pairs if label is not None]


def _missing(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if not path.is_file()]


def _problems(split: Split, gone: dict[str, list[Path]]) -> list[str]:
    found = []
    for kind, paths in gone.items():
        if paths:
            names = ", ".join(path.name for path in paths[:_SHOWN])
            more = ", …" if len(paths) > _SHOWN else ""
            found.append(
                f"{split.name}: {len(paths)} {kind} are missing in {paths[0].parent}: {names}{more}"
            )
    if len(split.pairs) != split.official:
        found.append(f"{split.name}: {len(split.pairs)} names, officially {split.official}")
        found += [f"{split.name}: {hint}" for hint in split.hints]
    return found


# ---------------------------------------------------------------- lists of names


def read_list(path: Path) -> list[str]:
    """The names in a split list; a missing list is empty."""
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def write_list(path: Path, names: Iterable[str], overwrite: bool) -> None:
    """Write a split list, sorted. An existing list with the same names stays as it is.

    Raises:
        ValueError: if it exists with other names, unless ``overwrite``.
    """
    wanted: Sequence[str] = sorted(names)
    if path.is_file():
        there = set(read_list(path))
        if there == set(wanted):
            return
        if not overwrite:
            other = sorted(there ^ set(wanted))
            raise ValueError(
                f"{path}: holds {len(there)} names, but these sources give {len(wanted)}; "
                f"{other[0]} is in one of them only. Move the file away, or replace it with "
                "--overwrite"
            )
    with atomic_write(path) as tmp_path:
        tmp_path.write_text("".join(f"{name}\n" for name in wanted), encoding="utf-8")
