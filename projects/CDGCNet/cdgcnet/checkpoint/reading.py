"""Weight files: their contents, without running anything in them, and their names."""

import collections
import hashlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in containers, and runs nothing else."""

    _ALLOWED = (
        ("collections", "OrderedDict"),
        ("_codecs", "encode"),
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if module == "collections":
            return collections.OrderedDict
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a weight file; nothing in it is run.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected a weight file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    try:
        if path.suffix == ".pkl":
            with path.open("rb") as file:
                loaded = _ArraysOnly(file, encoding="latin1").load()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many types for files of other kinds
        reason = _in_short(error)
        raise ValueError(f"{path}: not a file of tensors ({reason})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a state dict, found {type(loaded).__name__}")
    return loaded


def _in_short(error: Exception) -> str:
    """One line of what torch says in many, or in a number."""
    text = str(error)
    if found := re.search(
        r"(?:Unsupported global: GLOBAL|Trying to load unsupported GLOBAL) (\S+)", text
    ):
        return f"it asks for {found[1]}"
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{type(error).__name__}: {first}" if len(first) > 5 else type(error).__name__


def name_of(path: Path) -> str:
    """File name and the beginning of its sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return f"{path.name} (sha256 {digest.hexdigest()[:12]})"
