"""Decoded images kept in a folder: the same arrays, and never a stale one."""

import errno
import logging
import os

import numpy as np
import pytest

from cdgcnet.data import decode_cache as cache_module
from cdgcnet.data.decode_cache import ArrayCache


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.bin"
    path.write_bytes(b"one")
    return path


class Decoder:
    """Counts its calls; the array is the file's bytes."""

    def __init__(self, path):
        self.path = path
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return np.frombuffer(self.path.read_bytes(), np.uint8).copy()


def test_second_call_is_not_decoded_and_equal(tmp_path, file):
    decode = Decoder(file)
    cache = ArrayCache(tmp_path / "cache")
    first, second = (cache.get(file, "", decode) for _ in range(2))
    assert decode.calls == 1
    np.testing.assert_array_equal(first, second)
    # Another process finds it too.
    np.testing.assert_array_equal(ArrayCache(tmp_path / "cache").get(file, "", decode), first)
    assert decode.calls == 1


def test_cached_array_cannot_be_changed_by_a_caller(tmp_path, file):
    cache = ArrayCache(tmp_path / "cache")
    cache.get(file, "", Decoder(file))
    with pytest.raises(ValueError, match="read-only"):
        cache.get(file, "", Decoder(file))[0] = 0


def test_changed_file_is_decoded_afresh(tmp_path, file):
    decode = Decoder(file)
    cache = ArrayCache(tmp_path / "cache")
    cache.get(file, "", decode)
    file.write_bytes(b"two")  # the same size
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert bytes(cache.get(file, "", decode)) == b"two"


def test_variants_of_one_file_are_kept_apart(tmp_path, file):
    cache = ArrayCache(tmp_path / "cache")
    cache.get(file, "RGB", Decoder(file))
    other = cache.get(file, "BGR", lambda: np.zeros(1, np.uint8))
    assert bytes(other) == b"\0"


def test_errors_of_decoding_pass_and_leave_nothing(tmp_path, file):
    def decode():
        raise ValueError("image.bin: broken")

    with pytest.raises(ValueError, match="broken"):
        ArrayCache(tmp_path / "cache").get(file, "", decode)
    assert not list(tmp_path.glob("cache/*"))


def test_missing_file_has_the_decoders_message(tmp_path):
    path = tmp_path / "gone"
    with pytest.raises(FileNotFoundError, match="gone"):
        ArrayCache(tmp_path / "cache").get(path, "", Decoder(path))


def test_foreign_file_in_the_folder_is_named(tmp_path, file):
    cache = ArrayCache(tmp_path / "cache")
    cache.get(file, "", Decoder(file))
    [entry] = (tmp_path / "cache").iterdir()
    entry.write_bytes(b"not an array")
    with pytest.raises(ValueError, match=rf"INPUT\.CACHE: .*{entry.name}.*delete the folder"):
        cache.get(file, "", Decoder(file))


def test_a_full_disk_is_reported_once_and_training_continues(tmp_path, file, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache_module._warn_once.cache_clear()
    monkeypatch.setattr(np, "save", full)
    cache = ArrayCache(tmp_path / "cache")
    decode = Decoder(file)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert bytes(cache.get(file, "", decode)) == b"one"
    assert decode.calls == 2
    [record] = [r for r in caplog.records if "INPUT.CACHE" in r.message]
    assert "disk is full" in record.message
    assert not list((tmp_path / "cache").iterdir())  # no half-written entry
