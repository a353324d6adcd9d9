"""Reading label images: the stored values at every bit depth, and errors that name the file."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet.data.label_io import check_labels, read_checked_labels, read_labels, read_sample_labels
from cdgcnet.data.label_spec import LabelSpec

# VOC's own palette starts 000000 800000 008000 808000 …: gray values 0 38 75 113 …
VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [200] * (252 * 3)
VOC_VALUES = np.array([[0, 1], [8, 15], [255, 0]], np.uint8)


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of big-endian values of the given number of bits, as image files store them."""
    rows = []
    for row in values:
        text = "".join(f"{v:0{bits}b}" for v in row.tolist())
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return rows


def gray_png(values: np.ndarray, bits: int, interlace: int = 0) -> bytes:
    """A grayscale PNG of any depth; Pillow and OpenCV write 1, 8 and 16 bits only."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, interlace)
    pixels = zlib.compress(b"".join(b"\0" + row for row in packed(values, bits)))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def gray_tiff(values: np.ndarray, bits: int, photometric: int = 1) -> bytes:
    """An uncompressed big-endian grayscale TIFF; photometric 1: 0 is black, 0: 0 is white."""
    height, width = values.shape
    pixels = b"".join(packed(values, bits))
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1,
            278: height, 279: len(pixels)}  # fmt: skip
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    return b"MM" + struct.pack(">HI", 42, 8 + len(pixels)) + pixels + directory


def save_palette(path: Path, labels: np.ndarray) -> Path:
    image = Image.fromarray(labels)
    image.putpalette(VOC_PALETTE)
    assert image.mode == "P"
    image.save(path)
    return path


def test_palette_png_gives_raw_indices(tmp_path):
    path = save_palette(tmp_path / "voc.png", VOC_VALUES)
    np.testing.assert_array_equal(read_labels(path), VOC_VALUES)
    # The trap: a conversion to gray makes other numbers of the same file.
    with Image.open(path) as image:
        assert np.asarray(image.convert("L"))[0, 1] == 38


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_png_of_any_depth(tmp_path, bits):
    labels = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    image = Image.fromarray(labels)
    image.putpalette(VOC_PALETTE)
    image.save(tmp_path / "p.png", bits=bits)
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), labels)


def test_sixteen_bit_labels_are_read_when_they_fit(tmp_path):
    Image.fromarray(VOC_VALUES.astype(np.uint16)).save(tmp_path / "16.png")
    read = read_labels(tmp_path / "16.png")
    np.testing.assert_array_equal(read, VOC_VALUES)
    assert read.dtype == np.uint8


def test_sixteen_bit_value_above_255_is_refused(tmp_path):
    # 7000: Cityscapes instance ids look like this; cut to 8 bits it would be 88.
    Image.fromarray(np.full((2, 2), 7000, np.uint16)).save(tmp_path / "ids.png")
    with pytest.raises(ValueError, match=r"ids\.png: .*7000"):
        read_labels(tmp_path / "ids.png")


def test_negative_label_is_refused(tmp_path):
    # -1 is a common "ignore" of 32-bit label files; wrapped to 255 it would pass as ours.
    Image.fromarray(np.array([[-1, 0]], np.int32)).save(tmp_path / "minus.tif")
    with pytest.raises(ValueError, match=r"minus\.tif: .*-1"):
        read_labels(tmp_path / "minus.tif")


def test_out_of_range_label_names_file_value_and_hint(tmp_path):
    path = tmp_path / "gray.png"
    # VOC's palette turned into gray: the very mistake the hint is for.
    Image.fromarray(np.array([[0, 38], [75, 255]], np.uint8)).save(path)
    with pytest.raises(ValueError) as caught:
        read_checked_labels(path, LabelSpec(21), (2, 2))
    message = str(caught.value)
    assert str(path) in message
    assert "38" in message and "0 to 20" in message
    assert "palette PNG" in message
    assert "[0, 38, 75, 255]" in message


@given(
    num_classes=st.integers(1, 255),
    values=st.lists(st.integers(0, 255), min_size=1, max_size=8),
)
def test_exactly_classes_and_the_ignore_label_pass(num_classes, values):
    labels = np.array([values], np.uint8)
    wrong = [v for v in values if v >= num_classes and v != 255]
    if wrong:
        with pytest.raises(ValueError, match=rf"label value {min(wrong)} is neither"):
            check_labels(labels, LabelSpec(num_classes), "x.png")
    else:
        check_labels(labels, LabelSpec(num_classes), "x.png")


def test_size_mismatch_names_the_file_and_both_sizes(tmp_path):
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(tmp_path / "l.png")
    with pytest.raises(ValueError, match=r"l\.png: labels are 4 x 7, but .* 4 x 6"):
        read_checked_labels(tmp_path / "l.png", LabelSpec(2), (4, 6))


def test_labels_of_a_dict_pass_through_its_table(tmp_path):
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "l.png")
    table = bytes([254] * 7 + [1, 254, 255] + [254] * 246)  # 7 is class 1, 9 is ignored
    sample = {"sem_seg_file_name": str(tmp_path / "l.png"), "sem_seg_lut": table}
    assert read_sample_labels(sample, LabelSpec(2), (1, 2)).tolist() == [[1, 255]]
    assert read_sample_labels({"file_name": "a.png"}, LabelSpec(2), (1, 2)) is None


# ---------------------------------------------------------------- the stored values


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_of_any_depth_gives_the_stored_values(tmp_path, bits, suffix):
    # Pillow reads 0, 1, … of a 4-bit file as 0, 17, …: class 17 would be trained.
    values = np.arange(min(2**bits, 256)).reshape(2, -1).astype(np.uint8)
    path = tmp_path / f"gray.{suffix}"
    path.write_bytes(gray_png(values, bits) if suffix == "png" else gray_tiff(values, bits))
    np.testing.assert_array_equal(read_labels(path), values)


def test_interlaced_gray_of_four_bits(tmp_path):
    # Another decoder path: a 1 x 1 image has a single Adam7 pass.
    (tmp_path / "one.png").write_bytes(gray_png(np.array([[5]], np.uint8), 4, interlace=1))
    assert read_labels(tmp_path / "one.png").tolist() == [[5]]


@pytest.mark.parametrize("bits", [1, 8])
def test_bmp_gives_the_stored_values(tmp_path, bits):
    values = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    image = Image.fromarray(values if bits == 8 else values.astype(bool))
    image.save(tmp_path / "l.bmp")
    np.testing.assert_array_equal(read_labels(tmp_path / "l.bmp"), values)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("RGB", r"found a color image \(mode RGB\)"),
        ("RGBA", r"found a color image with an alpha channel \(mode RGBA\)"),
        ("LA", r"found a grayscale image with an alpha channel \(mode LA\)"),
        ("CMYK", r"found a CMYK color image \(mode CMYK\)"),
        ("F", r"found an image of floating-point values \(mode F\)"),
    ],
)
def test_other_modes_are_refused_in_the_right_words(tmp_path, mode, words):
    path = tmp_path / ("label.tif" if mode in ("CMYK", "F") else "label.png")
    Image.new(mode, (3, 2)).save(path)
    with pytest.raises(ValueError, match=f"{path.name}: .*{words}$"):
        read_labels(path)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("l.jpg", "JPEG format", {}),
        ("l.webp", "WEBP format", {"lossless": True}),
        ("l.pgm", "PPM format", {}),
        ("l.tif", "jpeg compression", {"compression": "jpeg"}),
    ],
)
def test_formats_that_change_values_are_refused(tmp_path, name, kind, options):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name, **options)
    with pytest.raises(ValueError, match=rf"{name}: .*{kind}.*does not keep values.*PNG"):
        read_labels(tmp_path / name)


def test_tiff_in_which_zero_is_white_is_refused(tmp_path):
    (tmp_path / "fax.tif").write_bytes(gray_tiff(np.eye(4, dtype=np.uint8), 8, photometric=0))
    with pytest.raises(ValueError, match=r"fax\.tif: .*0 means white"):
        read_labels(tmp_path / "fax.tif")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_turned_label_is_refused(tmp_path, suffix):
    # Turned by a viewer, or copied from the photo with its EXIF data? The file cannot tell.
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(path, exif=exif)
    with pytest.raises(ValueError, match=rf"turned\.{suffix}: .*EXIF orientation 6"):
        read_labels(path)


def test_transparency_does_not_change_values(tmp_path):
    image = Image.fromarray(VOC_VALUES)
    image.putpalette(VOC_PALETTE)
    image.save(tmp_path / "t.png", transparency=0)
    np.testing.assert_array_equal(read_labels(tmp_path / "t.png"), VOC_VALUES)


def test_size_limit_names_the_key(tmp_path):
    for bits in (4, 8):  # Pillow's path, OpenCV's path
        (tmp_path / "big.png").write_bytes(gray_png(np.zeros((20, 30), np.uint8), bits))
        assert read_labels(tmp_path / "big.png", max_pixels=600).shape == (20, 30)
        with pytest.raises(ValueError, match=r"big\.png: 20 x 30 .*INPUT\.MAX_PIXELS"):
            read_labels(tmp_path / "big.png", max_pixels=599)
