"""Reads label images as raw class indices and checks their values."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cdgcnet.data.image_io import UNREADABLE, decode_plain_png, plain_png_size


def read_labels(path: str | Path, lut: bytes | None = None) -> np.ndarray:
    """A label PNG as raw indices (H, W) uint8.

    Palette PNGs give their indices: Detectron2's ``read_image(path, "L")`` would turn them into
    gray values (VOC's 1 becomes 38).

    Args:
        path: the file.
        lut: 256 values that replace the file's, e.g. ids by contiguous classes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for a color image, an unreadable one or values above 255.
    """
    try:
        data = Path(path).read_bytes()
        plain = plain_png_size(data, color_type=0)
        labels = decode_plain_png(data, cv2.IMREAD_UNCHANGED) if plain else None
        if labels is None:
            with Image.open(io.BytesIO(data)) as image:
                mode = image.mode
                labels = np.asarray(image)
            if mode not in ("P", "L", "1", "I", "I;16"):
                raise ValueError(
                    f"{path}: expected a label PNG with one index per pixel (grayscale or "
                    f"palette), found a color image of mode {mode}"
                )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such label file") from error
    except UNREADABLE as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a readable label image ({error})") from error
    if labels.dtype != np.uint8:
        for value in (int(labels.min()), int(labels.max())) if labels.size else ():
            if not 0 <= value <= 255:
                raise ValueError(f"{path}: label value {value} is outside 0 to 255")
        labels = labels.astype(np.uint8)
    return labels if lut is None else np.frombuffer(lut, np.uint8)[labels]


def check_labels(
    labels: np.ndarray,
    num_classes: int,
    ignore_label: int,
    path: str | Path,
    lut: bytes | None = None,
) -> None:
    """Refuse label values that are neither a class nor the ignore label.

    Args:
        labels: (H, W) uint8, raw values of the file.
        lut: 256 values that will replace them; what it makes of a value is checked.

    Raises:
        ValueError: naming the file, its value and what may be behind it.
    """
    classes = np.arange(256) if lut is None else np.frombuffer(lut, np.uint8)
    forbidden = ((classes >= num_classes) & (classes != ignore_label)).astype(np.uint8)
    if not cv2.LUT(labels, forbidden).any():
        return
    found = [int(v) for v in np.unique(labels)]
    wrong = next(v for v in found if forbidden[v])
    if lut is not None:
        raise ValueError(
            f"{path}: label value {wrong} is none that the dataset knows; values found: "
            f"{found[:30]}. Are these the labels of another version or dataset?"
        )
    raise ValueError(
        f"{path}: label value {wrong} is neither a class (0 to {num_classes - 1}, "
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}) nor the ignore label {ignore_label}; "
        f"values found: {found[:30]}. Is it a palette PNG that was saved as "
        "gray values, or a file of label ids where train ids are expected?"
    )


def read_checked_labels(
    path: str | Path,
    num_classes: int,
    ignore_label: int,
    size: tuple[int, int],
    lut: bytes | None = None,
) -> np.ndarray:
    """Labels of a known image size (H, W), every value checked, then replaced as ``lut`` says."""
    labels = read_labels(path)
    if labels.shape != tuple(size):
        raise ValueError(
            f"{path}: labels are {labels.shape[0]} x {labels.shape[1]}, but the image is "
            f"{size[0]} x {size[1]} (height x width)"
        )
    check_labels(labels, num_classes, ignore_label, path, lut)
    return labels if lut is None else np.frombuffer(lut, np.uint8)[labels]
