"""Images and labels from files, and files written so that no half of one is ever left."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image, UnidentifiedImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB`\x82"
_UNREADABLE = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)


def _decode_png(path: str | Path, color_type: int) -> np.ndarray | None:
    """Pixels of an ordinary 8-bit PNG by OpenCV, 1.5 times as fast as Pillow; None: not that kind.

    Args:
        path: the file.
        color_type: of the PNG header, 2 for RGB (decoded as BGR), 0 for greyscale.
    """
    data = Path(path).read_bytes()
    header = data[:29]  # signature 8, IHDR 8 + width 4, height 4, depth, colour type, …, interlace
    plain = (
        len(header) == 29
        and header[:8] == _PNG
        and (header[24], header[25], header[28]) == (8, color_type, 0)
        # OpenCV would fill up a truncated file with grey
        and data.endswith(_PNG_END)
        # transparency and EXIF orientation have their rules, which Pillow knows
        and b"tRNS" not in data
        and b"eXIf" not in data
    )
    if not plain:
        return None
    flags = cv2.IMREAD_COLOR if color_type == 2 else cv2.IMREAD_UNCHANGED
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


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
    try:
        bgr = _decode_png(path, color_type=2)
        if bgr is not None:
            return bgr if image_format == "BGR" else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        with Image.open(path) as image:
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.int64)
                if grey.min() < 0 or grey.max() > 65535:
                    raise ValueError("32-bit pixels; expected 8 or 16 bits")
                grey = (grey >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            if image.mode == "F":
                raise ValueError("floating-point pixels; expected 8 or 16 bits")
        return np.ascontiguousarray(detection_utils.read_image(str(path), image_format))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except _UNREADABLE as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


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
        labels = _decode_png(path, color_type=0)
        if labels is None:
            with Image.open(path) as image:
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


def check_labels(labels: np.ndarray, num_classes: int, ignore_label: int, path: str | Path) -> None:
    """Refuse label values that are neither a class nor the ignore label.

    Raises:
        ValueError: naming the file, the value and what may be behind it.
    """
    counts = cv2.calcHist([np.ascontiguousarray(labels)], [0], None, [256], [0, 256])
    found = np.flatnonzero(counts)
    wrong = [int(v) for v in found if v >= num_classes and v != ignore_label]
    if wrong:
        raise ValueError(
            f"{path}: label value {wrong[0]} is neither a class (0 to {num_classes - 1}, "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}) nor the ignore label {ignore_label}; "
            f"values found: {[int(v) for v in found][:30]}. Is it a palette PNG that was saved as "
            "grey values, or a file of label ids where train ids are expected?"
        )


def read_checked_labels(
    path: str | Path,
    num_classes: int,
    ignore_label: int,
    size: tuple[int, int],
    lut: bytes | None = None,
) -> np.ndarray:
    """Labels of a known image size (H, W), every value checked."""
    labels = read_labels(path, lut)
    if labels.shape != tuple(size):
        raise ValueError(
            f"{path}: labels are {labels.shape[0]} x {labels.shape[1]}, but the image is "
            f"{size[0]} x {size[1]} (height x width)"
        )
    check_labels(labels, num_classes, ignore_label, path)
    return labels


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
