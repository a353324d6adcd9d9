"""RGB masks, in which every class has a color."""

import io
from collections import Counter
from pathlib import Path

import numpy as np

from cdgcnet.data.decoding import (
    MAX_PIXELS,
    UnusableImageError,
    open_image,
    orientation_of,
    read_bytes,
)
from cdgcnet.data.prepare.annotations.class_table import ClassTable

_FORMATS = ("PNG", "TIFF", "BMP")  # lossless


def read_color_mask(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Colors of a mask as (H, W) int32, red * 65536 + green * 256 + blue.

    Raises:
        FileNotFoundError, UnusableImageError: for files that are unreadable, not lossless, turned
            by EXIF data or partly transparent.
    """
    data = read_bytes(path, "color mask")
    with open_image(io.BytesIO(data), path, "color mask", max_pixels) as image:
        if image.format not in _FORMATS:
            raise UnusableImageError(
                f"{path}: the color mask is in {image.format} format, which does not keep colors; "
                "export it as PNG"
            )
        if orientation_of(image) != 1:
            raise UnusableImageError(f"{path}: the color mask has an EXIF orientation; remove it")
        rgba = np.asarray(image.convert("RGBA")).astype(np.int32)
    if rgba[:, :, 3].min() < 255:
        raise UnusableImageError(
            f"{path}: the color mask is partly transparent, so its colors are unclear; export it "
            "without an alpha channel"
        )
    return (rgba[:, :, 0] << 16) + (rgba[:, :, 1] << 8) + rgba[:, :, 2]


def name_of(color: int) -> str:
    """A color as the class list and the mapping file write it: "R G B"."""
    return f"{color >> 16} {color >> 8 & 255} {color & 255}"


def count_colors(path: str | Path, max_pixels: int = MAX_PIXELS) -> Counter[str]:
    """Pixels of each color of a mask."""
    colors, pixels = np.unique(read_color_mask(path, max_pixels), return_counts=True)
    names = map(name_of, colors.tolist())
    return Counter(dict(zip(names, pixels.tolist(), strict=True)))


def color_table(table: ClassTable) -> ClassTable:
    """The same classes, with their colors as further names for them.

    Raises:
        ValueError: if two classes have one color.
    """
    names = dict(zip((" ".join(map(str, c)) for c in table.colors), table.names, strict=True))
    if len(names) < len(table.names):
        raise ValueError("--classes: two classes have the same color")
    return ClassTable(table.names, table.colors, names | table.mapping)


def labels_of_mask(
    path: str | Path, table: ClassTable, unlabeled: int, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Class ids (H, W) uint8 of a color mask.

    Args:
        path: the mask.
        table: knows every color; see :func:`color_table`.
        unlabeled: the label of colors that the mapping leaves out.
        max_pixels: height x width at most.
    """
    colors, inverse = np.unique(read_color_mask(path, max_pixels), return_inverse=True)
    found = [table.label(name_of(color)) for color in colors.tolist()]
    ids = np.array([unlabeled if label is None else label for label in found], np.uint8)
    return ids[inverse].reshape(inverse.shape)
