"""Opens image files: which formats are read, how large they may be, and what the errors say.

Images (``image_io``) and labels (``label_io``) are both opened here. Only the Pillow plugins listed
below are ever tried, so no file can start another program, such as Ghostscript for EPS.
"""

import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# The default of INPUT.MAX_PIXELS: 300 MB as RGB.
MAX_PIXELS = 100_000_000
NO_LIMIT = 2**63  # for files whose size has been accepted before

# First bytes of a file and the plugin that reads it. Image.open would apply Pillow's own size
# limit, which is global to the process.
_PLUGINS = (
    (b"\x89PNG", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.jpeg_factory),
    (b"II", TiffImagePlugin.TiffImageFile),
    (b"MM", TiffImagePlugin.TiffImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"P2", PpmImagePlugin.PpmImageFile),
    (b"P3", PpmImagePlugin.PpmImageFile),
    (b"P5", PpmImagePlugin.PpmImageFile),
    (b"P6", PpmImagePlugin.PpmImageFile),
)
_FORMATS = "PNG, JPEG, TIFF, BMP, WebP, PPM or PGM"
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # values of it that swap height and width
_PNG_SIGNATURE_SIZE, _PNG_CHECKSUM_SIZE = 8, 4
_PNG_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks
_ORIENTED = ("exif", "Raw profile type exif", "XML:com.adobe.xmp")  # Pillow's names


class UnusableImageError(ValueError):
    """An image file that cannot be used; the message begins with its path."""


def check_size(path: str | Path, height: int, width: int, max_pixels: int) -> None:
    """Refuse an image that is too large, before memory is taken for it.

    Raises:
        UnusableImageError: naming the file, its size and the key INPUT.MAX_PIXELS.
    """
    if height * width > max_pixels:
        raise UnusableImageError(
            f"{path}: {height} x {width} (height x width) is {height * width / 1e6:.1f} million "
            f"pixels, but INPUT.MAX_PIXELS allows {max_pixels / 1e6:.1f} million; scale the image "
            "down, or raise INPUT.MAX_PIXELS if there is enough memory"
        )


def open_file(path: str | Path) -> BinaryIO:
    """Open a file, but no pipe, which would block, and no device, which may never end.

    Raises:
        OSError: if the path, or what it links to, cannot be opened or is no regular file.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("not a regular file")
    return Path(path).open("rb")


def read_bytes(path: str | Path, what: str) -> bytes:
    """The contents of a file.

    Args:
        what: "image" or "label image", for messages.

    Raises:
        FileNotFoundError, UnusableImageError: naming the file.
    """
    try:
        with open_file(path) as file:
            return file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such {what}") from error
    except OSError as error:
        raise UnusableImageError(f"{path}: not a readable {what} ({error})") from error


@contextmanager
def open_image(
    file: BinaryIO, path: str | Path, what: str = "image", max_pixels: int = MAX_PIXELS
) -> Iterator[ImageFile.ImageFile]:
    """Open an image; its pixels are not decoded yet.

    Whatever goes wrong in the ``with`` block is reported as a fault of this file: Pillow's
    decoders raise exceptions of almost any type on damaged files.

    Args:
        file: the contents.
        path: for messages.
        what: "image" or "label image", for messages.
        max_pixels: height x width at most.

    Raises:
        UnusableImageError: for another format, a damaged file, several frames or too many pixels.
    """
    try:
        start = file.read(4)
        file.seek(0)
        plugin = next((p for prefix, p in _PLUGINS if start.startswith(prefix)), None)
        if plugin is None:
            raise ValueError(f"expected {_FORMATS}, found something else")
        with plugin(file, str(path)) as image:
            check_size(path, image.height, image.width, max_pixels)
            # Some cameras store a preview behind the photo (MPO); the first frame is the photo.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if frames > 1:
                raise ValueError(f"it holds {frames} frames or pages; save the one to use alone")
            yield image
    except (UnusableImageError, MemoryError):
        raise
    except Exception as error:
        raise UnusableImageError(f"{path}: not a readable {what} ({error})") from error


def orientation_of(image: ImageFile.ImageFile) -> int:
    """Orientation, 1 to 8, of EXIF or else XMP metadata; 1 is upright. Pixels are not decoded."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if _ORIENTATION in image.tag_v2:
            return image.tag_v2[_ORIENTATION]
        return _orientation_in({"xmp": image.info.get("xmp")})
    if isinstance(image, PngImagePlugin.PngImageFile) and image.tile and image.fp:
        # Pillow would decode the pixels, because metadata may follow them.
        return _orientation_in(_png_metadata(image.fp))
    return image.getexif().get(_ORIENTATION, 1)


def _orientation_in(info: dict[str, Any]) -> int:
    """The orientation that Pillow finds in the metadata of an image."""
    image = Image.Image()
    image.info.update(info)
    return image.getexif().get(_ORIENTATION, 1)


def _png_metadata(file: IO[bytes]) -> dict[str, Any]:
    """The metadata of a PNG file that may hold an orientation, with Pillow's names for it.

    Only the metadata is read, so this takes time for every chunk of pixels, but not for every
    pixel.
    """
    start = file.tell()
    stream = PngImagePlugin.PngStream(file)
    file.seek(_PNG_SIGNATURE_SIZE)
    try:
        while (chunk := stream.read())[0] != b"IEND":
            name, position, length = chunk
            if name in _PNG_METADATA:
                stream.call(name, position, length)
            file.seek(position + length + _PNG_CHECKSUM_SIZE)
    except (struct.error, SyntaxError, UnicodeDecodeError):
        pass  # Pillow ignores metadata from here on, too
    finally:
        file.seek(start)
    return {key: stream.im_info[key] for key in _ORIENTED if key in stream.im_info}


def image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(H, W) of an image when it is upright, without decoding it.

    Raises:
        FileNotFoundError, UnusableImageError: naming a file that is missing or unusable.
    """
    try:
        with open_file(path) as file, open_image(file, path, max_pixels=max_pixels) as image:
            width, height = image.size
            sideways = orientation_of(image) in _SIDEWAYS
            if isinstance(image, TiffImagePlugin.TiffImageFile) and _ORIENTATION in image.tag_v2:
                sideways = False  # Pillow has swapped height and width already
            return (width, height) if sideways else (height, width)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except OSError as error:
        raise UnusableImageError(f"{path}: not a readable image ({error})") from error
