"""Files that cannot be written: the message names the file and what to do."""

import pytest

from cdgcnet.utils.io import atomic_write


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
