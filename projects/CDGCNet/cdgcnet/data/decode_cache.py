"""Keeps decoded images in a folder for later epochs, workers and runs."""

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
    """Arrays made from files, stored as .npy and mapped into memory on later requests.

    An entry belongs to a path, the file's size and its modification time, so a changed file is
    decoded again. Entries are never deleted here; the folder can be deleted between two runs.
    """

    def __init__(self, folder: str | Path):
        """
        Args:
            folder: created on first use; it takes about 4 bytes for each pixel of the dataset
                (3 for the image, 1 for its labels).
        """
        self.folder = Path(folder).expanduser()

    def get(self, path: str | Path, variant: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a file; read-only if it comes from the cache.

        Args:
            path: the file.
            variant: tells apart different arrays of one file.
            decode: makes the array; if it raises, nothing is stored.

        Raises:
            ValueError: naming an entry that is not an array file.
        """
        try:
            state = Path(path).stat()
        except OSError:
            return decode()  # has the right message for a missing file
        key = f"{Path(path).absolute()}\n{state.st_size}\n{state.st_mtime_ns}\n{variant}"
        entry = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if entry.exists():
            try:
                # Of a Path, NumPy would look up every folder on the way.
                return np.load(str(entry), mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(
                    f"INPUT.CACHE: {entry} is not an array of this cache ({error}); delete the "
                    f"folder {self.folder} and start again"
                ) from error
        array = decode()
        try:
            with atomic_write(entry) as tmp_path:
                np.save(tmp_path, array)
        except OSError as error:
            # The cache only saves time, so training continues without this entry.
            _warn_once(f"INPUT.CACHE: training continues, but cannot store this image: {error}")
        return array
