"""Decoded images kept in a folder, so that later epochs, workers and runs need not decode them."""

import hashlib
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from cdgcnet.utils.io import atomic_write


@lru_cache(maxsize=16)
def _warn_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


class ArrayCache:
    """Arrays made from files, stored as .npy and mapped into memory when they are asked for again.

    An entry belongs to a path, its size and its time of change, so a changed file is decoded
    afresh. Entries are never deleted here; the folder may be, at any time between two runs.
    """

    def __init__(self, folder: str | Path):
        """
        Args:
            folder: made on first use; about 4 bytes per pixel of the dataset (an image takes 3,
                its labels 1).
        """
        self.folder = Path(folder).expanduser()

    def get(self, path: str | Path, variant: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a file; read-only if it comes from the cache.

        Args:
            path: the file.
            variant: tells apart different arrays of one file.
            decode: makes the array; its errors are passed on and nothing is stored.

        Raises:
            ValueError: naming an entry that is no array file.
        """
        try:
            state = Path(path).stat()
        except OSError:
            return decode()  # has the right message for a missing file
        key = f"{Path(path).absolute()}\n{state.st_size}\n{state.st_mtime_ns}\n{variant}"
        entry = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if entry.exists():
            try:
                return np.load(entry, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(
                    f"INPUT.CACHE: {entry} is no array of this cache ({error}); delete the folder "
                    f"{self.folder} and start again"
                ) from error
        array = decode()
        try:
            with atomic_write(entry) as tmp_path:
                np.save(tmp_path, array)
        except OSError as error:
            # The cache saves time, nothing else: training goes on without this entry.
            _warn_once(f"INPUT.CACHE: going on without storing more images: {error}")
        return array
