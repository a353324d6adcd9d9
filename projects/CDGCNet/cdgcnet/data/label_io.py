"""Reads label images as raw values, checks them and turns them into class ids."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import ImageFile

from cdgcnet.data.decoding import (
    MAX_PIXELS,
    UnusableImageError,
    check_size,
    open_image,
    orientation_of,
    read_bytes,
)
from cdgcnet.data.image_io import decode_plain_png, plain_png_size
from cdgcnet.data.label_spec import LabelSpec

_FORMATS = ("PNG", "TIFF", "BMP")  # lossless, and read without scaling values
VALUE_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # one number per pixel
_MODE_NAMES = {
    "LA": "a grayscale image with an alpha channel",
    "PA": "a palette image with an alpha channel",
    "RGB": "a color image",
    "RGBA": "a color image with an alpha channel",
    "RGBX": "a color image",
    "CMYK": "a CMYK color image",
    "YCbCr": "a color image",
    "LAB": "a color image",
    "F": "an image of floating-point values",
}
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF tag and value


def _check_kind(image: ImageFile.ImageFile, path: str | Path) -> None:
    """Refuse label images whose pixels are not exactly the numbers that somebody stored.

    Raises:
        UnusableImageError: naming the file, what it is and what to save instead.
    """
    if image.format not in _FORMATS:
        raise UnusableImageError(
            f"{path}: the label image is in {image.format} format, which does not keep values; "
            "save labels as PNG"
        )
    if image.mode not in VALUE_MODES:
        kind = _MODE_NAMES.get(image.mode, "an image")
        raise UnusableImageError(
            f"{path}: expected a label image with one value per pixel (grayscale or palette), "
            f"found {kind} (mode {image.mode})"
        )
    if orientation_of(image) != 1:
        raise UnusableImageError(
            f"{path}: the label image has the EXIF orientation {orientation_of(image)}, so it is "
            "unclear whether its pixels are upright; save it upright and without EXIF data"
        )
    if image.format == "TIFF":
        if image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
            raise UnusableImageError(
                f"{path}: the label image is a TIFF file with {image.info['compression']} "
                "compression, which does not keep values; save labels as PNG"
            )
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
            raise UnusableImageError(
                f"{path}: the label image is a TIFF file in which 0 means white, so it is unclear "
                "which values are meant; save labels as PNG"
            )


def _stored_values(image: ImageFile.ImageFile) -> np.ndarray:
    """The numbers in the file; Pillow spreads gray values of 2 and 4 bits over 0 to 255."""
    arguments = image.tile[0].args
    raw_mode = str(arguments[0] if isinstance(arguments, tuple) else arguments)
    values = np.asarray(image)
    for prefix, factor in (("L;2", 85), ("L;4", 17)):
        if raw_mode.startswith(prefix):
            return values // factor
    return values


def read_labels(path: str | Path, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a label image as the raw values (H, W) uint8 that are stored in it.

    Grayscale of 1 to 16 bits gives its numbers, a palette image its indices. (Detectron2's
    ``read_image(path, "L")`` turns palette indices into gray values: VOC's 1 becomes 38.)

    Raises:
        FileNotFoundError: if there is no such file.
        UnusableImageError (a ValueError): naming a file that is unreadable, too large, in color,
            not lossless, or holds values above 255.
    """
    data = read_bytes(path, "label image")
    labels = None
    if size := plain_png_size(data, color_type=0):
        check_size(path, *size, max_pixels)
        labels = decode_plain_png(data, cv2.IMREAD_UNCHANGED)
    if labels is None:
        with open_image(io.BytesIO(data), path, "label image", max_pixels) as image:
            _check_kind(image, path)
            labels = _stored_values(image)
            _check_kind(image, path)  # metadata may follow the pixels
    if labels.dtype != np.uint8:
        for value in (int(labels.min()), int(labels.max())):
            if not 0 <= value <= 255:
                raise UnusableImageError(f"{path}: label value {value} is outside 0 to 255")
        labels = labels.astype(np.uint8)
    return labels


def check_labels(labels: np.ndarray, spec: LabelSpec, path: str | Path) -> None:
    """Refuse raw values that are neither a class nor ignored.

    Args:
        labels: (H, W) uint8, raw values of the file.
        spec: what they may be.
        path: for messages.

    Raises:
        ValueError: naming the file, the value and the likely cause.
    """
    forbidden = spec.forbidden
    if not cv2.LUT(labels, forbidden.astype(np.uint8)).any():
        return
    found = [int(v) for v in np.unique(labels)]
    wrong = next(v for v in found if forbidden[v])
    if spec.lut is not None:
        raise ValueError(
            f"{path}: the dataset does not know label value {wrong}; values found: {found[:30]}. "
            "Are these the labels of another version or another dataset?"
        )
    raise ValueError(
        f"{path}: label value {wrong} is neither a class (0 to {spec.num_classes - 1}, "
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {spec.num_classes}) nor the ignore label "
        f"{spec.ignore_label}; values found: {found[:30]}. Is it a palette PNG that was saved as "
        "gray values, or a file of label ids where train ids are expected?"
    )


def read_checked_labels(
    path: str | Path, spec: LabelSpec, size: tuple[int, int], max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read the class ids (H, W) uint8 of an image of known size (H, W).

    Raises:
        FileNotFoundError, ValueError: as :func:`read_labels` and :func:`check_labels`, and for
            labels of another size than the image.
    """
    labels = read_labels(path, max_pixels)
    if labels.shape != tuple(size):
        raise ValueError(
            f"{path}: labels are {labels.shape[0]} x {labels.shape[1]}, but the image is "
            f"{size[0]} x {size[1]} (height x width)"
        )
    check_labels(labels, spec, path)
    return spec.to_ids(labels)


def read_sample_labels(
    dataset_dict: Mapping[str, Any],
    spec: LabelSpec,
    size: tuple[int, int],
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray | None:
    """Read the class ids (H, W) uint8 of a dataset dict; None if it has no labels.

    Training, evaluation, preflight and figures all read ground truth here.

    Args:
        dataset_dict: with "file_name", "sem_seg_file_name" and perhaps "sem_seg_lut".
        spec: of the model or dataset; the table comes from the dict.
        size: (H, W) of the image.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checked_labels`.
    """
    path = dataset_dict.get("sem_seg_file_name")
    if path is None:
        return None
    return read_checked_labels(path, spec.for_sample(dataset_dict), size, max_pixels)


def read_instances(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """Read a Cityscapes ``*_instanceIds.png``.

    Returns:
        (H, W) int32: label id * 1000 + number of the instance, or a label id alone.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing, broken or of another size.
    """
    data = read_bytes(path, "instance file")
    with open_image(io.BytesIO(data), path, "instance file") as image:
        instances = np.asarray(image)
    if instances.shape != tuple(size):
        raise ValueError(
            f"{path}: instances are {' x '.join(map(str, instances.shape))}, but the image is "
            f"{size[0]} x {size[1]} (height x width)"
        )
    return instances.astype(np.int32)
