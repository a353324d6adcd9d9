"""A cache is what its name says, survives a kill, and is never used for anything else."""

import collections
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cdgcnet.comparison.feature_cache import FeatureCache, Plan
from cdgcnet.comparison.features import grid_size, label_size


class FakeExtractor:
    """Feature (i, j) of an image is (i, j, mean of the image); counts its calls."""

    channels, stride, shorter_side, max_pixels = 3, 8, 32, 10_000

    def __init__(self, weights="w"):
        self.weights = weights
        self.calls = []
        self.fail_at = None

    def describe(self):
        return {"stride": self.stride, "shorter_side": self.shorter_side}

    def __call__(self, entry):
        self.calls.append(entry["file_name"])
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        image = np.asarray(Image.open(entry["file_name"]))
        h, w = grid_size(*image.shape[:2], self.shorter_side, self.stride)
        rows, columns = np.indices((h, w)).astype(np.float32)
        features = np.stack([rows, columns, np.full((h, w), image.mean() / 255)], axis=2)
        labels = np.full(label_size(h, w, self.stride), int(image.mean()) % 3, np.uint8)
        return torch.from_numpy(features.reshape(-1, 3)).float(), labels


@pytest.fixture
def entries(tmp_path):
    """Six images of three sizes."""
    listed = []
    for i in range(6):
        image, label = tmp_path / f"{i}.png", tmp_path / f"{i}_label.png"
        size = (40, 32 + 8 * (i % 3))
        Image.fromarray(np.full((*size, 3), 30 * i, np.uint8)).save(image)
        Image.fromarray(np.zeros(size, np.uint8)).save(label)
        listed.append({"file_name": str(image), "sem_seg_file_name": str(label)})
    return listed


def open_store(root, extractor, entries, channels=3):
    plan = Plan.read(entries, extractor)
    return FeatureCache(root, extractor, channels).open(plan, plan, "images")


def test_store_holds_what_the_extractor_gave(tmp_path, entries):
    extractor = FakeExtractor()
    store = open_store(tmp_path / "cache", extractor, entries)
    plan = Plan.read(entries, extractor)
    projection = FeatureCache(tmp_path / "cache", extractor, 3).projection(plan)
    assert len(store) == 6 and store.stride == 8 and store.channels == 3
    assert isinstance(store.features, np.memmap)
    for i, entry in enumerate(entries):
        rows, labels = extractor(entry)
        features, kept = store[i]
        assert features.shape == (*store.nodes[i], 3)
        np.testing.assert_array_equal(features.reshape(-1, 3), projection(rows))
        np.testing.assert_array_equal(kept, labels)


def test_second_opening_computes_nothing(tmp_path, entries):
    open_store(tmp_path / "cache", FakeExtractor(), entries)
    again = FakeExtractor()
    open_store(tmp_path / "cache", again, entries)
    assert again.calls == []


def test_continues_after_a_kill(tmp_path, entries, monkeypatch):
    monkeypatch.setattr("cdgcnet.comparison.feature_cache._FLUSH", 2)
    whole = open_store(tmp_path / "whole", FakeExtractor(), entries)
    killed = FakeExtractor()
    killed.fail_at = 6 + 4  # six for the principal components, then in the fourth image
    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path / "cache", killed, entries)
    rest = FakeExtractor()
    store = open_store(tmp_path / "cache", rest, entries)
    assert rest.calls == [e["file_name"] for e in entries[2:]]  # two were written down
    np.testing.assert_array_equal(store.features, whole.features)
    np.testing.assert_array_equal(store.labels, whole.labels)


def change_image(entries, extractor):
    Image.fromarray(np.full((40, 32, 3), 200, np.uint8)).save(entries[0]["file_name"])


def change_label(entries, extractor):
    Image.fromarray(np.ones((40, 32), np.uint8)).save(entries[0]["sem_seg_file_name"])


def change_weights(entries, extractor):
    extractor.weights = "others"


def change_preprocessing(entries, extractor):
    extractor.shorter_side = 40


def change_order(entries, extractor):
    entries.reverse()


@pytest.mark.parametrize(
    "change",
    [change_image, change_label, change_weights, change_preprocessing, change_order],
)
def test_anything_else_is_computed_anew(tmp_path, entries, change):
    before = open_store(tmp_path / "cache", FakeExtractor(), entries)
    extractor = FakeExtractor()
    change(entries, extractor)
    after = open_store(tmp_path / "cache", extractor, entries)
    assert after.folder != before.folder
    assert collections.Counter(extractor.calls).keys() == {e["file_name"] for e in entries}


def test_damaged_caches_are_refused(tmp_path, entries):
    folder = open_store(tmp_path / "cache", FakeExtractor(), entries).folder
    content = (folder / "features.npy").read_bytes()
    (folder / "features.npy").write_bytes(content[:-10])
    with pytest.raises(ValueError, match=f"{folder.name} is damaged .* delete this folder"):
        open_store(tmp_path / "cache", FakeExtractor(), entries)
    (folder / "features.npy").write_bytes(content)
    (folder / "identity.json").write_text("{}")
    with pytest.raises(ValueError, match="made from something else"):
        open_store(tmp_path / "cache", FakeExtractor(), entries)


def test_a_damaged_projection_is_refused(tmp_path, entries):
    cache = FeatureCache(tmp_path / "cache", FakeExtractor(), 3)
    train, test = (Plan.read(part, cache.extractor) for part in (entries[:4], entries[4:]))
    cache.open(train, train, "training images")
    [path] = (tmp_path / "cache").glob("projection-*.npz")
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        cache.open(test, train, "images to score")


def test_features_beyond_half_precision_are_named(tmp_path, entries):
    class Wild(FakeExtractor):
        def __call__(self, entry):
            rows, labels = super().__call__(entry)
            late = len(self.calls) > len(entries) + 2
            return (rows * 1e8 if late else rows), labels

    with pytest.raises(ValueError, match=r"2\.png: .* half precision"):
        open_store(tmp_path / "cache", Wild(), entries)


def test_a_full_disk_is_known_beforehand(tmp_path, entries, monkeypatch):
    extractor, said = FakeExtractor(), []
    plan = Plan.read(entries, extractor)
    cache = FeatureCache(tmp_path / "cache", extractor, 3)
    cache.check_space([plan], plan, said.append)
    assert "6 images, 3 of 3 channels" in said[0]
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"--cache .* MiB are needed"):
        cache.check_space([plan], plan, said.append)
    assert extractor.calls == []
