"""Reads images of any common kind as upright (H, W, 3) uint8 arrays."""

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from cdgcnet.data.decoding import MAX_PIXELS, check_size, open_image, read_bytes

_PNG = b"\x89PNG\r\n\x1a\n"
# Text that may hold an orientation, which Pillow applies and OpenCV does not.
_METADATA_TEXT = (b"XML:com.adobe.xmp", b"Raw profile type")


def plain_png_size(data: bytes, color_type: int) -> tuple[int, int] | None:
    """Size (H, W) of a complete, ordinary 8-bit PNG; None for anything else.

    Args:
        data: the contents of the file.
        color_type: as in the PNG header: 2 for RGB, 0 for grayscale.
    """
    header = data[:29]  # signature 8, IHDR 8 + width 4, height 4, depth, color type, …, interlace
    if len(header) < 29 or header[:8] != _PNG:
        return None
    if (header[24], header[25], header[28]) != (8, color_type, 0):
        return None
    position, chunk = 8, b""
    while chunk != b"IEND":
        if position + 12 > len(data):
            return None  # truncated: OpenCV would fill the missing rows
        chunk = data[position + 4 : position + 8]
        # Transparency, orientation and animation have rules that only Pillow knows.
        if chunk in (b"tRNS", b"eXIf", b"acTL"):
            return None
        if chunk in (b"iTXt", b"tEXt", b"zTXt") and data.startswith(_METADATA_TEXT, position + 8):
            return None
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return int.from_bytes(header[20:24], "big"), int.from_bytes(header[16:20], "big")


def decode_plain_png(data: bytes, flags: int) -> np.ndarray | None:
    """Pixels of a plain PNG, decoded faster than by Pillow; None if OpenCV finds it damaged."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _with_height(png: bytes, height: int) -> bytes:
    """The same PNG with a smaller height in its header, so that a decoder stops early."""
    header = png[12:20] + height.to_bytes(4, "big") + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels (H, W, 3) uint8 of an upright image in any mode of Pillow's.

    Raises:
        ValueError: for pixels that have no natural 8-bit form.
    """
    if image.mode == "F":
        raise ValueError("it has floating-point pixels; expected 8 or 16 bits per channel")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.int64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("it has 32-bit pixels; expected 8 or 16 bits per channel")
        return np.repeat((gray >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    # Pillow copies an image even where it changes nothing.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


class ImageFile:
    """An image file whose size is known before it is decoded, and that can be decoded in part.

    A training crop needs no rows below it, and decoding is most of the work of a training sample.
    """

    def __init__(
        self,
        path: str | Path,
        image_format: str = "RGB",
        max_pixels: int = MAX_PIXELS,
        data: bytes | None = None,
    ) -> None:
        """
        Args:
            path: an image of any kind; see :func:`read_image`.
            image_format: "RGB" or "BGR".
            max_pixels: height x width at most.
            data: the contents; then ``path`` is only a name for messages.

        Raises:
            FileNotFoundError, ValueError: as :func:`read_image`.
        """
        self.path = path
        self.image_format = image_format
        self.max_pixels = max_pixels
        self._image: np.ndarray | None = None
        self._data = read_bytes(path, "image") if data is None else data
        size = plain_png_size(self._data, color_type=2)
        if size is None:
            self._image = self._decode_with_pillow(self._data)
            size = self._image.shape[:2]
        check_size(path, *size, max_pixels)
        self.height, self.width = size

    def _decode_with_pillow(self, data: bytes) -> np.ndarray:
        with open_image(io.BytesIO(data), self.path, max_pixels=self.max_pixels) as image:
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
            if self.image_format == "BGR":
                return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
            return np.require(rgb, requirements=["C", "W", "O"])

    def rows(self, stop: int) -> np.ndarray:
        """At least the rows above ``stop``: (stop … H, W, 3) uint8."""
        if self._image is None:
            # Pillow decodes just those rows; OpenCV always all of them, but 1.2 times as fast.
            if stop < 0.8 * self.height:
                return self._decode_with_pillow(_with_height(self._data, stop))
            image = decode_plain_png(self._data, cv2.IMREAD_COLOR)
            if image is None:
                self._image = self._decode_with_pillow(self._data)  # raises the right error
            elif self.image_format == "RGB":
                self._image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            else:
                self._image = image
        return self._image


def read_image(
    path: str | Path, image_format: str = "RGB", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Read an image of any kind as (H, W, 3) uint8, with its EXIF orientation applied.

    Gray images are repeated over the channels, alpha is dropped, CMYK is converted, and 16-bit
    values keep their high byte.

    Args:
        path: the file.
        image_format: "RGB" or "BGR".
        max_pixels: height x width at most; INPUT.MAX_PIXELS of a config.

    Raises:
        FileNotFoundError: if there is no such file.
        UnusableImageError (a ValueError): naming a file that is truncated, too large, animated or
            not an image in one of the formats of ``decoding``.
    """
    image = ImageFile(path, image_format, max_pixels)
    return image.rows(image.height)


def decode_image(
    data: bytes, name: str, image_format: str = "RGB", max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The same as :func:`read_image` for the contents of a file, with a name for messages."""
    image = ImageFile(name, image_format, max_pixels, data)
    return image.rows(image.height)
