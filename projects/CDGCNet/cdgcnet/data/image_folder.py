"""Which files of a folder are its images: one rule for training, audit, import and prediction."""

import os
from collections.abc import Iterator
from pathlib import Path

from cdgcnet.data.decoding import IMAGE_SUFFIXES
from cdgcnet.utils.io import is_unfinished


def files_in(folder: Path, recursive: bool = False) -> Iterator[Path]:
    """Visible files of a folder, sorted by their path below it.

    Names that begin with a dot are left out, files and folders alike, which includes the ``._NAME``
    files that macOS writes next to each file; so are files that a killed run left unfinished.
    Links to folders are followed; each folder is visited once.

    Raises:
        OSError: naming a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    visited = set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(f for f in folders if recursive and f[0] != "." and f != "__MACOSX")
        visible = (Path(here, name) for name in names if not name.startswith("."))
        found += [path for path in visible if not is_unfinished(path)]
    yield from sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """Files of a folder that are images by their suffix, in upper or lower case.

    A link that leads nowhere is listed too: whoever reads it can say what is wrong with it.

    Raises:
        OSError: naming a folder that cannot be read.
        ValueError: naming an image whose path is not UTF-8.
    """
    images = [p for p in files_in(folder, recursive) if p.suffix.lower() in IMAGE_SUFFIXES]
    for path in images:
        check_utf8(path)
    return images


def check_utf8(path: str | Path) -> None:
    """Refuse a path that no text file, page or log of a run could hold.

    Raises:
        ValueError: naming the path.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{str(path)!r}: expected a path in UTF-8, which tables and pages of results are "
            "written in; rename it"
        ) from None
