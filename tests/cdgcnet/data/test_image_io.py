"""Reading images: any common format becomes upright RGB, and errors name the file."""

import io
import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet.data.decoding import IMAGE_SUFFIXES, image_size
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels


def test_exif_orientation_is_applied(tmp_path):
    # A phone's portrait photo: stored 2 rows x 16 columns, tag 6 = "turn 90 degrees clockwise".
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, 16:] = 255  # the right half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "phone.jpg", exif=exif, quality=100)
    image = read_image(tmp_path / "phone.jpg")
    assert image.shape == (32, 16, 3)
    # Turned clockwise, the right half is the lower half.
    assert image[:14].max() < 30 and image[18:].min() > 225


def test_gray_image_gets_three_equal_channels(tmp_path):
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    image = read_image(tmp_path / "gray.png")
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(image[:, :, channel], gray)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "1"])
def test_any_image_mode_becomes_rgb(tmp_path, mode):
    Image.new(mode, (5, 3)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").shape == (3, 5, 3)


def test_bgr_is_rgb_reversed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    rgb, bgr = (read_image(tmp_path / "a.png", order) for order in ("RGB", "BGR"))
    np.testing.assert_array_equal(rgb, pixels)
    np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])
    assert bgr.flags.c_contiguous


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_header_and_pixels_agree_on_the_size(tmp_path, suffix, orientation):
    # Law: the size from the header is that of the decoded, upright image.
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    expected = (8, 4) if orientation > 4 else (4, 8)
    assert image_size(path) == read_image(path).shape[:2] == expected


XMP = '<rdf:Description tiff:Orientation="%d"/>'


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def orienting_chunk(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    if kind == "eXIf":
        return chunk(b"eXIf", data.removeprefix(b"Exif\0\0"))
    if kind == "XMP":
        text = (XMP % orientation).encode()
        return chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + text)
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif" + bytes(2) + zlib.compress(text))


def save_with_chunks(path: Path, before: bytes, after: bytes, mode: str = "RGB") -> None:
    """A PNG of 4 rows x 8 columns with chunks before and after its pixels."""
    buffer = io.BytesIO()
    Image.new(mode, (8, 4)).save(buffer, "PNG")
    png = buffer.getvalue()
    path.write_bytes(png[:33] + before + png[33:-12] + after + png[-12:])


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", ["eXIf", "XMP", "raw profile"])
def test_header_and_pixels_agree_wherever_a_png_has_its_orientation(
    tmp_path, kind, place, orientation
):
    path = tmp_path / "photo.png"
    chunks = {"before": b"", "after": b"", place: orienting_chunk(kind, orientation)}
    save_with_chunks(path, **chunks)
    expected = (8, 4) if orientation == 6 else (4, 8)
    assert image_size(path) == read_image(path).shape[:2] == expected
    save_with_chunks(path, **chunks, mode="L")
    if orientation == 1:
        assert read_labels(path).shape == (4, 8)
    else:
        with pytest.raises(ValueError, match=rf"photo\.png: .*orientation {orientation}"):
            read_labels(path)


@pytest.mark.parametrize("first", [1, 6])
@pytest.mark.parametrize("second", [1, 6])
@pytest.mark.parametrize("kind", ["eXIf", "XMP"])
def test_header_and_pixels_agree_on_two_orientations(tmp_path, kind, first, second):
    path = tmp_path / "photo.png"
    save_with_chunks(path, orienting_chunk("eXIf", first), orienting_chunk(kind, second))
    assert image_size(path) == read_image(path).shape[:2]


@pytest.mark.parametrize("exif", [None, 1, 3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "tif", "webp"])
def test_header_and_pixels_agree_on_the_orientation_of_xmp(tmp_path, suffix, exif):
    path = tmp_path / f"photo.{suffix}"
    xmp = (XMP % 6).encode()
    metadata = Image.Exif()
    if exif is not None:
        metadata[0x0112] = exif
    if suffix == "tif":
        metadata[700] = xmp
        Image.new("RGB", (8, 4)).save(path, exif=metadata)
    else:
        Image.new("RGB", (8, 4)).save(path, exif=metadata, xmp=xmp)
    expected = (8, 4) if exif in (None, 6) else (4, 8)
    assert image_size(path) == read_image(path).shape[:2] == expected


@pytest.mark.parametrize("after", [b"", orienting_chunk("XMP", 6)], ids=["plain", "XMP"])
def test_the_size_is_known_without_the_pixels(tmp_path, monkeypatch, after):
    path = tmp_path / "photo.png"
    save_with_chunks(path, b"", after)

    def load(image):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert image_size(path) == ((8, 4) if after else (4, 8))


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_a_format_that_is_read(tmp_path, suffix):
    image = Image.new("L" if suffix == ".pgm" else "RGB", (5, 3), "white")
    image.save(tmp_path / f"image{suffix}")
    assert read_image(tmp_path / f"image{suffix}").min() > 250


@pytest.mark.parametrize("name", ["a.eps", "a.pdf", "a.gif", "a.ico", "a.tga"])
def test_other_formats_are_not_even_tried(tmp_path, name):
    # EPS would start Ghostscript. A suffix does not protect: the contents decide.
    Image.new("RGB", (16, 16)).save(tmp_path / name)
    renamed = (tmp_path / name).rename(tmp_path / "renamed.png")
    for read in (read_image, read_labels, image_size):
        with pytest.raises(ValueError, match=r"renamed\.png: not a readable .*expected PNG, JPEG"):
            read(renamed)


@pytest.mark.parametrize(("suffix", "word"), [("tif", "2 frames"), ("webp", "2 "), ("png", "2 ")])
def test_animations_and_pages_are_refused(tmp_path, suffix, word):
    path = tmp_path / f"two.{suffix}"
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    for read in (read_image, read_labels, image_size):
        with pytest.raises(ValueError, match=rf"two\.{suffix}: .*it holds {word}.*save the one"):
            read(path)


def test_camera_file_with_a_preview_gives_the_photo(tmp_path):
    photo, preview = Image.new("RGB", (8, 4), "red"), Image.new("RGB", (4, 2), "blue")
    photo.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[preview])
    assert read_image(tmp_path / "photo.jpg")[2, 2, 0] > 200
    assert image_size(tmp_path / "photo.jpg") == (4, 8)


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")  # magenta + yellow
    red, green, blue = read_image(tmp_path / "print.jpg")[4, 4].tolist()
    assert red > 220 and green < 40 and blue < 40


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    Image.fromarray(np.array([[0x12FF, 0xFF00]], np.uint16)).save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png")[:, :, 0].tolist() == [[0x12, 0xFF]]
    for suffix in (".png", ".tif"):
        path = tmp_path / f"color{suffix}"
        path.write_bytes(cv2.imencode(suffix, np.full((2, 2, 3), 0x34FF, np.uint16))[1].tobytes())
        assert (read_image(path) == 0x34).all()


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match=r"depth\.tif: .*floating-point"):
        read_image(tmp_path / "depth.tif")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_size_limit_names_the_key_before_anything_is_decoded(tmp_path, suffix):
    path = tmp_path / f"big.{suffix}"
    Image.new("RGB", (30, 20)).save(path)
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    for read in (read_image, image_size):
        with pytest.raises(ValueError, match=r"20 x 30 \(height x width\).*INPUT\.MAX_PIXELS"):
            read(path, max_pixels=599)


def test_bomb_is_refused_from_its_header(tmp_path):
    # 60 000 x 60 000 pixels would take 10 GB.
    data = bytearray(_png())
    header = data[12:16] + (60_000).to_bytes(4, "big") * 2 + data[24:29]
    data[12:33] = header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(data)
    for read in (read_image, read_labels, image_size):
        with pytest.raises(ValueError, match=r"bomb\.png: 60000 x 60000 .*3600\.0 million"):
            read(tmp_path / "bomb.png")


# ---------------------------------------------------------------- files that are not images


@pytest.mark.parametrize("read", [read_image, read_labels])
@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"no image at all", b"\xff\xd8\xff"]
)
def test_unreadable_file_is_named(tmp_path, read, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png: not a readable"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such"):
        read(tmp_path / "gone.png")


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_folder_in_place_of_a_file_is_named(tmp_path, read):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png: not a readable"):
        read(tmp_path / "folder.png")


@pytest.mark.parametrize("read", [read_image, read_labels, image_size])
def test_pipes_and_devices_are_not_opened(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable .*\(not a regular file\)"):
            read(tmp_path / name)


def _png(*channels: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, *channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# OpenCV decodes the first one as a label map and the second one as an image.
GRAY, RGB = _png(), _png(3)
# One of these files and a position in it.
places = st.sampled_from([GRAY, RGB]).flatmap(
    lambda png: st.tuples(st.just(png), st.integers(0, len(png) - 1))
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def pixels_or_message(read, path: Path) -> np.ndarray | str:
    try:
        return read(path)
    except ValueError as error:  # any other type fails the test
        return str(error)


@given(place=places)
def test_truncated_png_never_passes_as_other_pixels(scratch, place):
    # Law: cut anywhere, a file is refused by name or (only its end mark is gone) reads unchanged.
    png, length = place
    path = scratch / "cut.png"
    path.write_bytes(png[:length])
    with Image.open(io.BytesIO(png)) as image:
        whole = np.asarray(image.convert("RGB"))
    for read, expected in ((read_labels, whole[:, :, 0]), (read_image, whole)):
        found = pixels_or_message(read, path)
        if isinstance(found, str):
            assert "cut.png" in found
        else:
            np.testing.assert_array_equal(found, expected)


@example(place=(GRAY, 11), value=1)  # an IHDR chunk of 1 byte: Pillow raises a bare ValueError
@example(place=(RGB, 11), value=1)
@given(place=places, value=st.integers(0, 255))
def test_damaged_png_gives_pixels_or_a_named_error(scratch, place, value):
    png, position = place
    path = scratch / "damaged.png"
    path.write_bytes(png[:position] + bytes([value]) + png[position + 1 :])
    for read in (read_labels, read_image, image_size):
        found = pixels_or_message(read, path)
        assert not isinstance(found, str) or "damaged.png" in found
