"""Label files: checked against their image, written as palette PNGs; MATLAB files read."""

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat

from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.data.prepare.archives import Content
from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import label_image

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


def read_png(content: Content) -> np.ndarray:
    """Raw indices (H, W) uint8 of a label PNG.

    Raises:
        ValueError: for an unreadable file or a color image.
    """
    if isinstance(content, Path):
        return read_labels(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels.png")
        path.write_bytes(content)
        return read_labels(path)


def map_labels(labels: np.ndarray, table: np.ndarray, what: str) -> np.ndarray:
    """Replace each label v by ``table[v]``.

    Args:
        labels: (H, W) of whole numbers.
        table: new labels; -1 for values that must not occur.
        what: the values that may occur, in words, with an article.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: naming the shape, or a value that must not occur.
    """
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"expected a label map (height, width), found the shape {labels.shape}")
    values = np.unique(labels).tolist()
    for value in values:
        if not 0 <= value < len(table) or value != int(value) or table[int(value)] < 0:
            raise ValueError(f"label value {value} is not {what}; values found: {values[:30]}")
    return table[labels.astype(np.int64)].astype(np.uint8)


def save_labels(
    labels: np.ndarray, colors: Sequence[Sequence[int]], image: Path, target: Path
) -> None:
    """Write labels (H, W) as a palette PNG of raw indices, if their image is sound.

    Raises:
        ValueError: for an unreadable image, or one of another size.
        FileNotFoundError: for a missing image.
    """
    require_size(labels, image)
    with atomic_write(target) as tmp_path:
        label_image(labels, colors).save(tmp_path)


def require_size(labels: np.ndarray, image: Path) -> None:
    """Refuse labels (H, W) that are not of the size of their image; reads the whole image."""
    height, width = read_image(image).shape[:2]
    if labels.shape != (height, width):
        raise ValueError(
            f"the labels are {labels.shape[0]} x {labels.shape[1]}, but the image {image} is "
            f"{height} x {width} (height x width)"
        )
