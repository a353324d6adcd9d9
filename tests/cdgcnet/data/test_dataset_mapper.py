"""From a dataset dict to the model's input."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from cdgcnet.data.augmentation import ResizeForTest, ScaleJitter
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.image_io import ImageFile, read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.data.train_loader import seeded


def mapper(
    is_train: bool = True, augmentations=(), num_classes: int = 3, **options
) -> SemSegMapper:
    return SemSegMapper(
        augmentations=list(augmentations),
        image_format="RGB",
        label_spec=LabelSpec(num_classes),
        is_train=is_train,
        **options,
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


def test_training_sample(sample):
    out = mapper()(sample)
    assert out["image"].shape == (3, 4, 6) and str(out["image"].dtype) == "torch.uint8"
    assert out["sem_seg"].shape == (4, 6) and str(out["sem_seg"].dtype) == "torch.int64"
    assert (out["height"], out["width"]) == (4, 6)
    np.testing.assert_array_equal(out["sem_seg"].numpy(), read_labels(sample["sem_seg_file_name"]))
    np.testing.assert_array_equal(
        out["image"].numpy().transpose(1, 2, 0), read_image(sample["file_name"])
    )


@pytest.mark.parametrize(
    "view",
    [
        (slice(None), slice(None)),
        (slice(None), slice(None, None, -1)),
        (slice(None, None, -1), slice(None)),
        (slice(1, 3), slice(4, 1, -1)),
    ],
    ids=["whole", "flipped", "upside down", "flipped part"],
)
def test_views_of_an_image_become_its_channels(sample, view):
    class View(T.Augmentation):
        def get_transform(self, image):
            return T.ColorTransform(lambda pixels: pixels[view])

    image = mapper(is_train=False, augmentations=[View()])(sample)["image"]
    assert image.is_contiguous()
    expected = read_image(sample["file_name"])[view].transpose(2, 0, 1)
    np.testing.assert_array_equal(image.numpy(), expected)


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
    with pytest.raises(ValueError, match=r"a\.png: the image has no labels"):
        mapper()(sample)


def test_label_out_of_range_reaches_the_caller(sample):
    with pytest.raises(ValueError, match=r"a_label\.png: label value 2 .*NUM_CLASSES 2"):
        mapper(num_classes=2)(sample)


def test_tensors_are_writable_and_own_their_memory(sample):
    # torch warns on read-only arrays, and warnings are errors here; a write must not fail either.
    out = mapper()(sample)
    out["image"] += 1
    out["sem_seg"] += 1


def test_the_original_image_is_handed_over_only_if_it_was_resized(sample):
    # Test-time augmentation starts from the file's own pixels, and must not decode them again.
    out = mapper(False, [ResizeForTest(8, 100)], keep_original=True)(sample)
    assert out["image"].shape == (3, 8, 12)
    np.testing.assert_array_equal(out["original_image"], read_image(sample["file_name"]))
    out = mapper(False, [ResizeForTest(0, 100)], keep_original=True)(sample)
    assert "original_image" not in out and out["image"].shape == (3, 4, 6)
    assert "original_image" not in mapper(False, [ResizeForTest(8, 100)])(sample)


def test_size_limit_holds_for_images_and_labels(sample):
    with pytest.raises(ValueError, match=r"a\.png: 4 x 6 .*INPUT\.MAX_PIXELS"):
        mapper(max_pixels=23)(sample)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(sample["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"a_label\.png: 5 x 5 .*INPUT\.MAX_PIXELS"):
        mapper(max_pixels=24)(sample)


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


@pytest.mark.parametrize(
    ("meta", "dtype"), [("CDGCSegmentor", torch.uint8), ("SemanticSegmentor", torch.int64)]
)
def test_only_our_network_gets_small_labels(street_cfg, street, meta, dtype):
    cfg = street_cfg(**{"MODEL.META_ARCHITECTURE": meta})
    [sample] = draws(cfg, street, count=1)
    assert sample["sem_seg"].dtype == dtype
    # Not a view of the whole label map, which a loader worker would send along.
    assert sample["sem_seg"].untyped_storage().nbytes() == sample["sem_seg"].nbytes


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
