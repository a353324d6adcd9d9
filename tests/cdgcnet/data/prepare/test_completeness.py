"""Counts against the official ones, and split lists."""

from pathlib import Path

import pytest

from cdgcnet.data.prepare.completeness import Split, count, read_list, write_list


def pairs(folder: Path, names: str, images: str = "", labels: str = ""):
    """Pairs a.jpg, a.png, … of ``names``; only those in ``images`` and ``labels`` are there."""
    folder.mkdir(exist_ok=True)
    for name in images:
        (folder / f"{name}.jpg").touch()
    for name in labels:
        (folder / f"{name}.png").touch()
    return [(folder / f"{name}.jpg", folder / f"{name}.png") for name in names]


def words(table: str, row: int) -> list[str]:
    return table.splitlines()[2 + row].split(maxsplit=4)  # below the headers and their line


def test_a_complete_split(tmp_path):
    table, problems = count([Split("train", 2, pairs(tmp_path / "x", "ab", "ab", "ab"))])
    assert words(table, 0) == ["train", "2", "2", "2", "ok"]
    assert problems == []


def test_missing_files_are_named_ten_of_them(tmp_path):
    names = "abcdefghijklm"  # 13: the first two have a label, the last has an image
    split = Split("val", 13, pairs(tmp_path / "x", names, "m", "ab"))
    table, problems = count([split])
    assert words(table, 0) == ["val", "1", "2", "13", "INCOMPLETE"]
    images, labels = problems
    first = ", ".join(f"{n}.jpg" for n in "abcdefghij")
    assert images == f"val: 12 images are missing in {tmp_path / 'x'}: {first}, …"
    assert "val: 11 labels are missing" in labels and "c.png" in labels and "m.png" not in labels


def test_another_number_than_the_official_is_said_with_hints(tmp_path):
    split = Split("val", 3, pairs(tmp_path / "x", "a", "a", "a"), hints=["ulm has 1, not 3"])
    assert count([split])[1] == ["val: 1 names, officially 3", "val: ulm has 1, not 3"]
    # The hints belong to a wrong number alone.
    split = Split("val", 1, split.pairs, hints=["ulm"])
    assert count([split])[1] == []


def test_optional_splits_may_be_absent_but_not_incomplete(tmp_path):
    table, problems = count([Split("test", 2, [], optional=True)])
    assert words(table, 0) == ["test", "0", "0", "2", "absent (optional)"] and problems == []
    named = [(image, None) for image, _ in pairs(tmp_path / "x", "ab")]
    assert count([Split("test", 2, named, optional=True)])[1] == []
    (tmp_path / "x" / "a.jpg").touch()
    table, problems = count([Split("test", 2, named, optional=True)])
    assert words(table, 0) == ["test", "1", "-", "2", "INCOMPLETE"]
    assert len(problems) == 1 and "b.jpg" in problems[0]


def test_an_empty_required_split_is_incomplete():
    table, problems = count([Split("train", 2, [])])
    assert words(table, 0)[-1] == "INCOMPLETE" and problems == ["train: 0 names, officially 2"]


# ---------------------------------------------------------------- lists


def test_lists_are_sorted_and_read_back(tmp_path):
    path = tmp_path / "new" / "train.txt"
    write_list(path, {"b", "a"}, overwrite=False)
    assert path.read_text() == "a\nb\n"
    assert read_list(path) == ["a", "b"]
    assert read_list(tmp_path / "absent.txt") == []


def test_the_same_names_leave_a_list_as_it_is(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("b\r\n\na\n")
    write_list(path, ["a", "b"], overwrite=False)
    assert path.read_text() == "b\n\na\n"


def test_another_list_is_not_overwritten_silently(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a\nmine\n")
    with pytest.raises(ValueError) as caught:
        write_list(path, ["a"], overwrite=False)
    message = str(caught.value)
    assert all(w in message for w in (str(path), "2 names", "give 1", "mine", "--overwrite"))
    assert path.read_text() == "a\nmine\n"
    write_list(path, ["a"], overwrite=True)
    assert path.read_text() == "a\n"
