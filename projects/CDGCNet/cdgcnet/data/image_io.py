"""Images and labels from files, and files written so that no half of one is ever left."""

import errno
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image, ImageOps, UnidentifiedImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)


def _plain_png(data: bytes, color_type: int) -> tuple[int, int] | None:
    """Size (H, W) of a whole, ordinary 8-bit PNG; None for anything else.

    Args:
        data: the file.
        color_type: of the PNG header, 2 for RGB, 0 for greyscale.
    """
    header = data[:29]  # signature 8, IHDR 8 + width 4, height 4, depth, colour type, …, interlace
    if len(header) < 29 or header[:8] != _PNG:
        return None
    if (header[24], header[25], header[28]) != (8, color_type, 0):
        return None
    position, chunk = 8, b""
    while chunk != b"IEND":
        if position + 12 > len(data):
            return None  # truncated: OpenCV would fill it up
        chunk = data[position + 4 : position + 8]
        if chunk in (b"tRNS", b"eXIf"):
            return None  # transparency and orientation have their rules, which Pillow knows
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")


def _opencv_png(data: bytes, flags: int) -> np.ndarray | None:
    """Pixels of a plain PNG, faster than Pillow makes them; None if OpenCV finds it damaged."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _with_height(png: bytes, height: int) -> bytes:
    """The same PNG with a smaller height in its header: its first rows, for a decoder."""
    header = png[12:20] + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


class ImageFile:
    """An image file that knows its size before it is decoded, and can be decoded from the top.

    A crop needs no rows below it, and decoding is most of the work of a training sample.
    """

    def __init__(self, path: str | Path, image_format: str = "RGB"):
        """
        Args:
            path: an image of any kind; see :func:`read_image`.
            image_format: "RGB" or "BGR".

        Raises:
            FileNotFoundError, ValueError: as :func:`read_image`.
        """
        self.path = path
        self.image_format = image_format
        self._image: np.ndarray | None = None
        try:
            self._data = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: no such image") from error
        except OSError as error:
            raise ValueError(f"{path}: not a readable image ({error})") from error
        size = _plain_png(self._data, color_type=2)
        if size is None:
            self._image = self._by_pillow(self._data)
            size = self._image.shape[:2]
        self.height, self.width = size

    def _by_pillow(self, data: bytes) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(data)) as image:
                if image.mode == "F":
                    raise ValueError("floating-point pixels; expected 8 or 16 bits")
                if image.mode.startswith("I"):
                    grey = np.asarray(image).astype(np.int64)
                    if grey.min() < 0 or grey.max() > 65535:
                        raise ValueError("32-bit pixels; expected 8 or 16 bits")
                    return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
                upright = ImageOps.exif_transpose(image)
                pixels = detection_utils.convert_PIL_to_numpy(upright, self.image_format)
                return np.ascontiguousarray(pixels)
        except _UNREADABLE as error:
            raise ValueError(f"{self.path}: not a readable image ({error})") from error

    def rows(self, stop: int) -> np.ndarray:
        """The rows above ``stop``, perhaps more: (stop … H, W, 3) uint8."""
        if self._image is None:
            # Pillow decodes just those rows; OpenCV always all of them, 1.2 times as fast.
            if stop < 0.8 * self.height:
                return self._by_pillow(_with_height(self._data, stop))
            image = _opencv_png(self._data, cv2.IMREAD_COLOR)
            if image is None:
                self._image = self._by_pillow(self._data)  # has the message
            elif self.image_format == "RGB":
                self._image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            else:
                self._image = image
        return self._image


def read_image(path: str | Path, image_format: str = "RGB") -> np.ndarray:
    """An image of any kind as (H, W, 3) uint8, its EXIF orientation applied.

    Grey images are repeated over the channels, alpha is dropped, CMYK converted, 16-bit values
    keep their high byte.

    Args:
        path: the file.
        image_format: "RGB" or "BGR".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming a file that is no readable image, or that is truncated.
    """
    image = ImageFile(path, image_format)
    return image.rows(image.height)


def read_labels(path: str | Path, lut: bytes | None = None) -> np.ndarray:
    """A label PNG as raw indices (H, W) uint8.

    Palette PNGs give their indices: Detectron2's ``read_image(path, "L")`` would turn them into
    grey values (VOC's 1 becomes 38).

    Args:
        path: the file.
        lut: 256 values that replace the file's, e.g. ids by contiguous classes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for a colour image, an unreadable one or values above 255.
    """
    try:
        data = Path(path).read_bytes()
        plain = _plain_png(data, color_type=0)
        labels = _opencv_png(data, cv2.IMREAD_UNCHANGED) if plain else None
        if labels is None:
            with Image.open(io.BytesIO(data)) as image:
                mode = image.mode
                labels = np.asarray(image)
            if mode not in ("P", "L", "1", "I", "I;16"):
                raise ValueError(
                    f"{path}: expected a label PNG with one index per pixel (greyscale or "
                    f"palette), found a colour image of mode {mode}"
                )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such label file") from error
    except _UNREADABLE as error:
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
            f"{path}: label value {wrong} is none that the data set knows; values found: "
            f"{found[:30]}. Are these the labels of another version or data set?"
        )
    raise ValueError(
        f"{path}: label value {wrong} is neither a class (0 to {num_classes - 1}, "
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}) nor the ignore label {ignore_label}; "
        f"values found: {found[:30]}. Is it a palette PNG that was saved as "
        "grey values, or a file of label ids where train ids are expected?"
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name ``path`` when the block succeeds.

    So ``path`` is either whole or what it was before, even after a kill or on a full disk.

    Raises:
        OSError: naming ``path``, if it cannot be written; the started file is removed.
    """
    beside = path.with_name(f"{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        beside.replace(path)
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space and run the same command again",
            errno.EDQUOT: "the disk quota is used up: free some space and run it again",
            errno.EROFS: "the file system is read-only: choose another folder",
            errno.EACCES: "no permission to write there: choose another folder",
            errno.EPERM: "no permission to write there: choose another folder",
        }.get(error.errno or 0)
        if advice is None or error.filename == str(path):
            raise
        raise OSError(error.errno, f"cannot write, {advice}", str(path)) from error
    finally:
        beside.unlink(missing_ok=True)
