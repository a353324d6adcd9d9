"""Files that cannot be written: the message names the file and what to do."""

import pytest

from cdgcnet.utils.io import atomic_write, is_unfinished, read_json


@pytest.mark.parametrize(
    ("name", "advice"),
    [("file/below.txt", "a part of the path is a file"), ("a" * 252 + ".txt", "255 bytes")],
    ids=["below a file", "a name that is too long"],
)
def test_paths_that_cannot_be(tmp_path, name, advice):
    (tmp_path / "file").write_text("kept")
    path = tmp_path / name
    with pytest.raises(OSError, match=advice) as caught, atomic_write(path) as tmp:
        tmp.write_text("new")
    assert caught.value.filename == str(path)
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_two_writers_of_one_file_do_not_share_a_name(tmp_path):
    # As in two containers, where both may be process 1.
    path = tmp_path / "a.txt"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert is_unfinished(first) and is_unfinished(second) and first != second
    assert path.read_text() == "first" and [x.name for x in tmp_path.iterdir()] == ["a.txt"]


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    for stem in ("stra\udcdfe", "\udcdf" * 200):
        with atomic_write(tmp_path / f"{stem}.txt") as path:
            path.write_text("kept")
        assert (tmp_path / f"{stem}.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no readable JSON"),
        ('{"a": 1', "no readable JSON"),
        ("[" * 100_000, "no readable JSON"),
        (b"\xff\xfe", "no readable JSON"),
        ("[1]", "a list"),
        ("null", "a NoneType"),
    ],
)
def test_broken_json_names_its_file(tmp_path, text, found):
    path = tmp_path / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"record.json: expected a record, found {found}"):
        read_json(path, "a record")
    path.write_text('{"a": [1, 2]}')
    assert read_json(path, "a record") == {"a": [1, 2]}
    with pytest.raises(ValueError, match="expected a list of runs, found a dict"):
        read_json(path, "a list of runs", list)
