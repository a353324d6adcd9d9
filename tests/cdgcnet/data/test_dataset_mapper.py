"""Reading images and labels: raw indices, and errors that name the file."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet.data.augmentation import ScaleJitter
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.image_io import ImageFile, read_image
from cdgcnet.data.label_io import check_labels, read_checked_labels, read_labels
from cdgcnet.data.train_loader import seeded

# VOC's own palette starts 000000 800000 008000 808000 …: gray values 0 38 75 113 …
VOC_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [200] * (252 * 3)
VOC_VALUES = np.array([[0, 1], [8, 15], [255, 0]], np.uint8)


def save_palette(path: Path, labels: np.ndarray) -> Path:
    image = Image.fromarray(labels)
    image.putpalette(VOC_PALETTE)
    assert image.mode == "P"
    image.save(path)
    return path


def mapper(is_train: bool = True, augmentations=(), num_classes: int = 3) -> SemSegMapper:
    return SemSegMapper(
        augmentations=list(augmentations),
        image_format="RGB",
        num_classes=num_classes,
        ignore_label=255,
        is_train=is_train,
    )


@pytest.fixture
def sample(tmp_path):
    """A 4 x 6 image with its labels."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 3, (4, 6), dtype=np.uint8)).save(tmp_path / "a_label.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "sem_seg_file_name": str(tmp_path / "a_label.png"),
        "image_id": "a",
    }


# ---------------------------------------------------------------- labels


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


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK"])
def test_color_label_is_refused(tmp_path, mode):
    path = tmp_path / ("color.tif" if mode == "CMYK" else "color.png")
    Image.new(mode, (3, 2)).save(path)
    with pytest.raises(ValueError, match=f"{path.name}: .*{mode}$"):
        read_labels(path)


def test_out_of_range_label_names_file_value_and_hint(tmp_path):
    path = tmp_path / "gray.png"
    # VOC's palette turned into gray: the very mistake the hint is for.
    Image.fromarray(np.array([[0, 38], [75, 255]], np.uint8)).save(path)
    with pytest.raises(ValueError) as caught:
        read_checked_labels(path, 21, 255, (2, 2))
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
            check_labels(labels, num_classes, 255, "x.png")
    else:
        check_labels(labels, num_classes, 255, "x.png")


def test_size_mismatch_names_the_file_and_both_sizes(tmp_path, sample):
    Image.fromarray(np.zeros((4, 7), np.uint8)).save(sample["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"a_label\.png: labels are 4 x 7, but .* 4 x 6"):
        mapper()(sample)


# ---------------------------------------------------------------- files that are no images


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


def _png() -> bytes:
    labels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()


PNG = _png()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def pixels_or_message(read, path: Path) -> np.ndarray | str:
    try:
        return read(path)
    except ValueError as error:  # any other type fails the test
        return str(error)


@given(length=st.integers(0, len(PNG) - 1))
def test_truncated_png_never_passes_as_other_pixels(scratch, length):
    # Law: cut anywhere, a file is refused by name or (only its end mark is gone) reads unchanged.
    path = scratch / "cut.png"
    path.write_bytes(PNG[:length])
    with Image.open(io.BytesIO(PNG)) as image:
        whole = np.asarray(image)
    for read in (read_labels, lambda p: read_image(p)[:, :, 0]):
        found = pixels_or_message(read, path)
        if isinstance(found, str):
            assert "cut.png" in found
        else:
            np.testing.assert_array_equal(found, whole)


@example(position=11, value=1)  # an IHDR chunk of 1 byte: Pillow raises a bare ValueError
@given(position=st.integers(0, len(PNG) - 1), value=st.integers(0, 255))
def test_damaged_png_gives_pixels_or_a_named_error(scratch, position, value):
    path = scratch / "damaged.png"
    path.write_bytes(PNG[:position] + bytes([value]) + PNG[position + 1 :])
    for read in (read_labels, read_image):
        found = pixels_or_message(read, path)
        assert not isinstance(found, str) or "damaged.png" in found


# ---------------------------------------------------------------- images


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


def test_bgr_is_rgb_reversed(sample):
    rgb, bgr = (read_image(sample["file_name"], order) for order in ("RGB", "BGR"))
    np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])
    assert bgr.flags.c_contiguous


# ---------------------------------------------------------------- the mapper


def test_training_sample(sample):
    out = mapper()(sample)
    assert out["image"].shape == (3, 4, 6) and str(out["image"].dtype) == "torch.uint8"
    assert out["sem_seg"].shape == (4, 6) and str(out["sem_seg"].dtype) == "torch.int64"
    assert (out["height"], out["width"]) == (4, 6)
    np.testing.assert_array_equal(out["sem_seg"].numpy(), read_labels(sample["sem_seg_file_name"]))
    np.testing.assert_array_equal(
        out["image"].numpy().transpose(1, 2, 0), read_image(sample["file_name"])
    )


def test_input_dict_is_not_changed(sample):
    before = copy.deepcopy(sample)
    mapper()(sample)
    mapper(is_train=False)(sample)
    assert sample == before


def test_test_mode_reads_no_labels(sample):
    Path(sample["sem_seg_file_name"]).write_bytes(b"not even an image")
    out = mapper(is_train=False)(sample)
    assert "sem_seg" not in out
    assert out["sem_seg_file_name"] == sample["sem_seg_file_name"]  # the evaluator needs it


def test_test_size_is_the_files_own(sample):
    # The network may see another size; predictions are made for that of the file.
    out = mapper(is_train=False, augmentations=[ScaleJitter((2.0, 2.0))])(sample)
    assert out["image"].shape == (3, 8, 12)
    assert (out["height"], out["width"]) == (4, 6)


def test_training_without_labels_is_an_error(sample):
    del sample["sem_seg_file_name"]
    with pytest.raises(ValueError, match=r"a\.png: no labels"):
        mapper()(sample)


def test_label_out_of_range_reaches_the_caller(sample):
    with pytest.raises(ValueError, match=r"a_label\.png: label value 2 .*NUM_CLASSES 2"):
        mapper(num_classes=2)(sample)


def test_tensors_are_writable_and_own_their_memory(sample):
    # torch warns on read-only arrays, and warnings are errors here; a write must not fail either.
    out = mapper()(sample)
    out["image"] += 1
    out["sem_seg"] += 1


# ---------------------------------------------------------------- decoding no more than needed


@pytest.fixture
def street_cfg(tiny_cfg):
    """Crops of 24 x 24 with the whole augmentation, on images of 96 x 64."""

    def make(**changes):
        keys = {"INPUT.CROP.SIZE": [24, 24], "INPUT.COLOR_JITTER": True}
        return tiny_cfg({**keys, **changes})

    return make


@pytest.fixture
def street(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (96, 64, 3)).astype(np.uint8)).save(tmp_path / "i.png")
    labels = rng.integers(0, 6, (96, 64)).astype(np.uint8)
    labels[labels == 5] = 255
    Image.fromarray(labels).save(tmp_path / "l.png")
    return {
        "file_name": str(tmp_path / "i.png"),
        "sem_seg_file_name": str(tmp_path / "l.png"),
    }


def draws(cfg, sample, count=20):
    mapped = SemSegMapper(cfg, is_train=True)
    out = []
    for seed in range(count):
        with seeded(seed):
            out.append(mapped(sample))
    return out


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_array_equal(a["image"].numpy(), b["image"].numpy())
        np.testing.assert_array_equal(a["sem_seg"].numpy(), b["sem_seg"].numpy())


def test_partly_decoded_images_give_the_samples_of_whole_ones(street_cfg, street, monkeypatch):
    cfg = street_cfg()
    partly = draws(cfg, street)
    stops = []
    rows = ImageFile.rows

    def whole(self, stop):
        stops.append(stop)
        return rows(self, self.height)

    monkeypatch.setattr(ImageFile, "rows", whole)
    assert_same(partly, draws(cfg, street))
    assert min(stops) < 0.8 * 96  # some crops needed a part only, or this test shows nothing


def test_cache_changes_no_sample(street_cfg, street, tmp_path):
    plain = draws(street_cfg(), street)
    cfg = street_cfg(**{"INPUT.CACHE": str(tmp_path / "cache")})
    assert_same(plain, draws(cfg, street))  # filled …
    assert_same(plain, draws(cfg, street))  # … and used
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_cached_labels_are_checked_for_each_model(street_cfg, street, tmp_path):
    # What five classes accepted, four must still refuse.
    cache = {"INPUT.CACHE": str(tmp_path / "cache")}
    draws(street_cfg(**cache), street, 1)
    with pytest.raises(ValueError, match=r"l\.png: label value 4 is neither a class"):
        draws(street_cfg(**cache, **{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4}), street, 1)


def test_labels_pass_through_the_look_up_table(street_cfg, street):
    # Classes 0, 1, 2, … of the file become 1, 2, 3, …, its 4 is ignored.
    table = bytes([1, 2, 3, 4, 255] + [255] * 251)
    for before, after in zip(
        draws(street_cfg(), street),
        draws(street_cfg(), {**street, "sem_seg_lut": table}),
        strict=True,
    ):
        expected = np.frombuffer(table, np.uint8)[before["sem_seg"].numpy()]
        np.testing.assert_array_equal(after["sem_seg"].numpy(), expected)
