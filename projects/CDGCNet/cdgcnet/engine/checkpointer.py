"""Saves checkpoints so that each is intact, and resumes from the newest intact one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathManager
from torch import nn

from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer
from cdgcnet.engine.run_folder import RunFolder
from cdgcnet.utils.io import atomic_write


@contextmanager
def open_atomically(path: Path, mode: str = "wb") -> Iterator[IO]:
    """A file that takes its name when the block succeeds and its content is on the disk.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    with atomic_write(path) as tmp_path, tmp_path.open(mode) as file:
        try:
            yield file
        except RuntimeError as error:  # torch.save hides why its file could not be written
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror) from error
            raise
        file.flush()
        os.fsync(file.fileno())


class _AtomicFiles:
    """A path manager of Detectron2 that writes files with :func:`open_atomically`."""

    def __init__(self, manager: Any):
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def open(self, path: str, mode: str = "r", **options: Any) -> Any:
        if "w" in mode:
            return open_atomically(Path(path), mode)
        return self._manager.open(path, mode, **options)


class RunCheckpointer(StrictCheckpointer):
    """The checkpointer of a training run."""

    def __init__(self, model: nn.Module, save_dir: str, **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.path_manager: Any = _AtomicFiles(PathManager)
        self._folder = RunFolder(save_dir)

    def has_checkpoint(self) -> bool:
        return self._folder.newest_checkpoint() is not None

    def get_checkpoint_file(self) -> str:
        newest = self._folder.newest_checkpoint(say=True)
        return str(newest.path) if newest else ""
