"""Reads MATLAB files of any version."""

import io

import h5py
import numpy as np
from scipy.io import loadmat

from cdgcnet.data.prepare.archives import Content

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCK = 512  # MATLAB 7.3 files are HDF5 behind a header of this size


def is_hdf5(content: Content) -> bool:
    """Whether a MATLAB file is of version 7.3, which is HDF5, and not of an older one."""
    if isinstance(content, bytes):
        head = content[: _USER_BLOCK + len(_HDF5)]
    else:
        with content.open("rb") as file:
            head = file.read(_USER_BLOCK + len(_HDF5))
    return head.startswith(_HDF5) or head[_USER_BLOCK:] == _HDF5


def read_mat(content: Content, *names: str) -> dict[str, np.ndarray]:
    """The named variables of a MATLAB file of any version, those that it has.

    Raises:
        ValueError: for a file that is damaged or no MATLAB file.
    """
    try:
        stream = io.BytesIO(content) if isinstance(content, bytes) else str(content)
        if is_hdf5(content):
            with h5py.File(stream, "r") as file:
                # HDF5 stores rows first, MATLAB columns.
                return {name: np.asarray(file[name]).T for name in names if name in file}
        found = loadmat(stream, variable_names=names)
        return {name: found[name] for name in names if name in found}
    except Exception as error:  # both readers raise almost anything on a damaged file
        raise ValueError(f"not a readable MATLAB file ({type(error).__name__}: {error})") from error


def require_variable(variables: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A variable of a MATLAB file.

    Raises:
        ValueError: if it is not there.
    """
    if name not in variables:
        raise ValueError(f"the MATLAB file has no variable {name}; is it of another dataset?")
    return variables[name]
