"""Split lists: one image name a line."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cdgcnet.utils.io import atomic_write


def read_list(path: Path) -> list[str]:
    """The names of a split list; an absent list is empty."""
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def write_list(path: Path, names: Iterable[str], overwrite: bool) -> None:
    """Write a split list, sorted. One that is there with the same names stays as it is.

    Raises:
        ValueError: if it is there with other names, unless ``overwrite``.
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
