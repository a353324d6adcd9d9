"""Label PNGs: read, mapped to classes, checked against their image, and written with a palette."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.data.prepare.archives import Content
from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import label_image


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
    labels: np.ndarray,
    colors: Sequence[Sequence[int]],
    image: Path,
    target: Path,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write labels (H, W) as a palette PNG, if their image is sound and has their size.

    Raises:
        ValueError: for an unreadable image, or one of another size or more than ``max_pixels``.
        FileNotFoundError: for a missing image.
    """
    require_size(labels, image, max_pixels)
    with atomic_write(target) as tmp_path:
        label_image(labels, colors).save(tmp_path)


def require_size(labels: np.ndarray, image: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse labels (H, W) whose size is not that of their image; decodes the whole image."""
    height, width = read_image(image, max_pixels=max_pixels).shape[:2]
    if labels.shape != (height, width):
        raise ValueError(
            f"the labels are {labels.shape[0]} x {labels.shape[1]}, but the image {image} is "
            f"{height} x {width} (height x width)"
        )
