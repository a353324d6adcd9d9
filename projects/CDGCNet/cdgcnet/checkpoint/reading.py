"""The one reader of weight files: arrays only, checked, and no code run.

Training, evaluation, prediction and the converter all read weights here. The kind of a file is
recognized by its first bytes, not by its name: torch's zip archives and its older format,
safetensors, and pickles of NumPy arrays such as Detectron2's model zoo.
"""

import collections
import hashlib
import io
import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"
# The first bytes of torch's format before 1.6: the pickle of a magic number.
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5  # the magic number, the version, the system, the content, the storages' names
# Keys under which training programs store a state dict along with other things.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "network", "net")
# What wrappers around a whole network put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")
# Arrays that share their data in the file, as tied weights do, are copied apart.
_MAX_EXPANSION = 4


@dataclass(frozen=True)
class WeightFile:
    """The checked contents of a weight file.

    Attributes:
        path: where it was read.
        state: parameters and buffers by name, without wrappers such as "state_dict" and without
            prefixes that all names share, such as DataParallel's "module.".
        extra: what else the file holds, such as an optimizer's state.
    """

    path: Path
    state: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)


def _latin1(text: str, encoding: str) -> bytes:
    """What NumPy's pickles use ``_codecs.encode`` for."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


class _Dtype:
    """What NumPy's pickles get for a dtype: the plain numbers and no other.

    The state of a real dtype may forge objects, whose addresses then come from the file.
    """

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not re.fullmatch("[fiub][1248]", name):
            raise pickle.UnpicklingError(f"it asks for an array of {name!r}")
        self.plain = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        _, byte_order, *_ = state
        self.plain = self.plain.newbyteorder(byte_order)


class _Array(np.ndarray):
    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, fortran_order, data = state
        super().__setstate__((version, shape, dtype.plain, fortran_order, data))


def _start_array(*_: Any) -> np.ndarray:
    """The array that NumPy's pickles begin with, whatever shape they ask for; BUILD fills it."""
    return np.empty(0, np.int8).view(_Array)


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    """An array as large as its data, as pickle protocol 5 builds it."""
    if not isinstance(data, bytes | bytearray):  # of an array that BUILD could free
        raise pickle.UnpicklingError(f"it asks for an array in a {type(data).__name__}")
    return np.frombuffer(data, dtype.plain).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: _Dtype, data: Any) -> Any:
    return _array(data, dtype, (1,))[0]


# What pickles of NumPy arrays ask for, and what they get: nothing that takes more memory than the
# file holds. The class of arrays is an argument only; calling it could ask for any size.
_ARRAY_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _latin1,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
    _ARRAY_GLOBALS[f"{_core}.multiarray", "_reconstruct"] = _start_array
    _ARRAY_GLOBALS[f"{_core}.multiarray", "scalar"] = _scalar
    _ARRAY_GLOBALS[f"{_core}.numeric", "_frombuffer"] = _array


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays in containers and runs nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        found = _ARRAY_GLOBALS[module, name]
        # A pickle can set attributes of a function, its defaults among them: of this copy only.
        return partial(found) if isinstance(found, FunctionType) else found


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """The contents of a file, of which no read can ask for more than there is."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _check_pickles(file: Any, size: int, count: int) -> None:
    """Refuse pickles that ask for more memory than their file takes.

    Args:
        file: begins with pickles; its ``read`` gives no more than there is.
        size: of the file in bytes.
        count: of the pickles.

    Raises:
        UnpicklingError: for ``bytearray(n)``, which torch's restricted unpickler would call, and
            for memo numbers that no pickler writes: Python's list of the memo has no gaps.
        ValueError: for other bytes, and for strings longer than the file.
    """
    for _ in range(count):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL" and str(argument).endswith(" bytearray"):
                raise pickle.UnpicklingError("it asks for bytearray")
            if opcode.name.endswith("PUT") and int(argument or 0) > size:
                raise pickle.UnpicklingError(f"it numbers a value {argument}")


def load_torch(path: Path, *, in_place: bool = False) -> Any:
    """Load what ``torch.save`` has written, if it is intact and holds tensors and plain values.

    Args:
        path: of the file.
        in_place: map the tensors into memory instead of reading them.

    Raises:
        Exception: of many types, for anything else; nothing of the file was run.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            # torch stores its entries uncompressed and does not verify their checksums itself.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("a compressed zip archive, which torch does not write")
            if damaged := archive.testzip():
                raise ValueError(
                    f"the entry {damaged} is damaged (wrong checksum); copy the file again"
                )
            for entry in archive.infolist():
                if entry.filename.endswith(".pkl"):
                    content = archive.read(entry)
                    _check_pickles(io.BytesIO(content), len(content), 1)
    else:
        with _mapped(path) as mapped:
            _check_pickles(mapped, len(mapped), _LEGACY_PICKLES)
    if in_place:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with path.open("rb") as file:  # of a path torch would believe the suffix
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("reading safetensors needs `pip install safetensors`") from None
    return load_file(path)


def _describe(start: bytes) -> str:
    """What a file that is not a weight file probably is."""
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the file; run `git lfs pull`"
    if start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "a web page; the download failed"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        return "an image"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "a compressed archive; unpack it first"
    if start.isascii() and all(c >= 32 or c in b"\t\r\n" for c in start):
        return "a text file"
    return "no torch, safetensors or pickle file"


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith((_ZIP, _TORCH_LEGACY)):
        return load_torch(path)
    header = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and header < 100_000_000:
        return _read_safetensors(path)
    if start.startswith(b"\x80"):
        with _mapped(path) as mapped:
            _check_pickles(mapped, len(mapped), 1)
            mapped.seek(0)
            return _ArraysOnly(mapped, encoding="latin1").load()
    raise ValueError(_describe(start))


def _printable(text: str) -> str:
    """Text with names from a file as one short line that cannot control a terminal."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= 500 else f"{text[:500]} …"


def _in_short(error: Exception) -> str:
    """The first line of what torch says in many."""
    text = str(error)
    if found := re.search(
        r"(?:Unsupported global: GLOBAL|Trying to load unsupported GLOBAL) (\S+)", text
    ):
        return f"it asks for {found[1]}"
    if type(error) is ValueError or text.startswith("it asks for"):
        return text
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{type(error).__name__}: {first[:200]}" if len(first) > 5 else type(error).__name__


def _unwrap(loaded: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dict without wrappers and common prefixes, and what else the file holds."""
    extra: dict[str, Any] = {}
    unwrapped: list[Mapping] = []
    while True:
        name = next((n for n in _WRAPPERS if isinstance(loaded.get(n), Mapping)), None)
        if name is None:
            break
        unwrapped.append(loaded)
        if any(loaded[name] is outer for outer in unwrapped):
            raise ValueError(f"the entry {name!r} contains itself")
        extra |= {key: value for key, value in loaded.items() if key != name}
        loaded = loaded[name]
    for key in loaded:
        if not isinstance(key, str):
            raise ValueError(f"expected the names of parameters, found the key {key!r}")
    state = dict(loaded)
    while prefix := next(
        (p for p in _PREFIXES if state and all(k.startswith(p) for k in state)), ""
    ):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state, extra


def _from_numpy(array: np.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _tensor(name: str, value: Any, size: int) -> Tensor:
    """A value as a dense, finite tensor.

    Args:
        name: of the tensor.
        value: of any type.
        size: in bytes, of the file that it was read from.

    Raises:
        ValueError: naming the tensor.
    """
    if isinstance(value, np.ndarray):
        value = _from_numpy(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor, found {type(value).__name__}")
    if value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise ValueError(f"{name}: expected a plain tensor of numbers, found {value.dtype}")
    if value.device.type != "cpu":  # "meta": a name without numbers
        raise ValueError(f"{name}: the file holds no values for it ({value.device})")
    stored = min(value.untyped_storage().nbytes(), size)
    if value.numel() * value.element_size() > stored:
        raise ValueError(f"{name}: shape {tuple(value.shape)} needs more values than are stored")
    if value.is_floating_point():
        broken = int((~value.float().isfinite()).sum())
        if broken:
            raise ValueError(
                f"{name}: {broken} of {value.numel()} values are NaN or infinite; expected trained "
                "weights"
            )
    return value.detach()


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file of any of the known kinds; nothing in it is run.

    Raises:
        FileNotFoundError, ValueError: naming the file, what was found in it and, where one tensor
            is at fault, the tensor.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder; expected a weight file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path}: the file is empty")
    try:
        loaded = _read(path)
    except Exception as error:  # torch, zipfile and pickle raise many types for other files
        reason = _in_short(error)
        if reason.startswith("it asks for"):
            reason += "; store the state dict alone, torch.save(model.state_dict(), FILE)"
        raise ValueError(f"{path}: not a file of tensors: {_printable(reason)}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: expected a state dict, found {type(loaded).__name__}")
    if "blobs" in loaded or any(str(key).startswith("res2_0_branch2a") for key in loaded):
        raise ValueError(
            f"{path}: a file with Caffe2's names (Detectron 1, or Detectron2's MSRA files), which "
            "are not read here; use torchvision's weights"
        )
    try:
        state, extra = _unwrap(loaded)
        if not state:
            raise ValueError("the state dict is empty; expected tensors by name")
        size = path.stat().st_size
        copied = sum(v.nbytes for v in state.values() if isinstance(v, np.ndarray))
        if copied > _MAX_EXPANSION * size:
            raise ValueError(f"its arrays take {copied} bytes, the file itself {size}")
        return WeightFile(path, {k: _tensor(k, v, size) for k, v in state.items()}, extra)
    except ValueError as error:
        raise ValueError(f"{path}: {_printable(str(error))}") from error


def name_of(path: Path) -> str:
    """File name and the beginning of its sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return f"{path.name} (sha256 {digest.hexdigest()[:12]})"
