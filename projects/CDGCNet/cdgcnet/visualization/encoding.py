"""Pictures as the contents of files, and as addresses inside a page that needs no other file."""

import base64
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import class_colors, label_image

if TYPE_CHECKING:
    from detectron2.data import Metadata


def data_url(content: bytes, media_type: str) -> str:
    """The address "data:…" of a picture."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def jpeg(rgb: np.ndarray, quality: int) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG file.

    Args:
        rgb: the image.
        quality: 1 to 95.
    """
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def label_png(labels: np.ndarray, metadata: "Metadata") -> bytes:
    """A palette PNG whose pixel values are the classes (H, W).

    Run-length matching makes label maps smaller than zlib's default does, in a fifth of its time.
    """
    stream = io.BytesIO()
    drawn = label_image(labels, class_colors(metadata))
    drawn.save(stream, "PNG", compress_type=zlib.Z_RLE)
    return stream.getvalue()


def write_label_png(path: Path, labels: np.ndarray, metadata: "Metadata") -> None:
    """Write :func:`label_png` to a file, whole or not at all."""
    with atomic_write(path) as tmp_path:
        tmp_path.write_bytes(label_png(labels, metadata))
