"""Writes files so that a kill or a full disk never leaves half of one, and reads JSON files."""

import errno
import json
import logging
import os
import re
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_UNFINISHED = re.compile(r"\.\d+\.part(\.\w+)?$")
_MAX_STEM = 150  # bytes; file systems allow 255 for a whole name


def _short(stem: str) -> str:
    """A stem that leaves room for more in a file name; different for different stems."""
    data = os.fsencode(stem)
    if len(data) <= _MAX_STEM:
        return stem
    return f"{data[:_MAX_STEM].decode(errors='ignore')}-{zlib.crc32(data):08x}"


def unfinished_number() -> str:
    """Digits for the name of a file being written, which no other writer has.

    Processes in containers and on several machines may share their numbers.
    """
    return f"{os.getpid()}{secrets.randbelow(10**9):09}"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path next to ``path`` to write to; it takes the name ``path`` when the block succeeds.

    So ``path`` is either whole or what it was before, even after a kill or on a full disk.

    Raises:
        OSError: naming ``path``, if it cannot be written; the started file is removed.
    """
    tmp_path = path.with_name(f"{_short(path.stem)}.{unfinished_number()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield tmp_path
        tmp_path.replace(path)
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up: free some space and run it again",
            errno.EROFS: "the file system is read-only: choose another folder",
            errno.EACCES: "no permission to write there: choose another folder",
            errno.EPERM: "no permission to write there: choose another folder",
            errno.ENOTDIR: "a part of the path is a file: choose another folder",
            errno.EEXIST: "a part of the path is a file: choose another folder",
            errno.ENAMETOOLONG: "file systems allow 255 bytes for a name: choose a shorter one",
        }.get(error.errno or 0)
        if advice is None or error.filename == str(path):
            raise
        raise OSError(error.errno, f"cannot write, {advice}", str(path)) from error
    finally:
        with suppress(OSError):  # it would hide the reason
            tmp_path.unlink(missing_ok=True)


def read_json(path: Path, what: str, kind: type = dict) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        what: the file is expected to hold.
        kind: of the outermost value.

    Raises:
        OSError: if it cannot be read.
        ValueError: naming the file, if it is no JSON or another value.
    """
    expected = f"{path}: expected {what}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{expected}, found no readable JSON ({error})") from error
    if not isinstance(content, kind):
        raise ValueError(f"{expected}, found a {type(content).__name__}")
    return content


def is_unfinished(path: Path) -> bool:
    """Whether a file has a name that :func:`atomic_write` gives before the end.

    It is being written, or its writer was killed.
    """
    return _UNFINISHED.search(path.name) is not None


def free_name(path: Path) -> Path:
    """The first of ``NAME.1.SUFFIX``, ``NAME.2.SUFFIX``, … that does not exist yet."""
    number = 1
    while (free := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return free


def backup_existing(path: Path) -> None:
    """Move an existing file or folder aside: a result is never overwritten."""
    if path.exists():
        kept = path.rename(free_name(path))
        logging.getLogger(__name__).info(f"Earlier results kept as {kept}")
