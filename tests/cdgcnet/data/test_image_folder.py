"""The one rule for the images of a folder."""

import pytest

from cdgcnet.data.image_folder import images_in
from cdgcnet.utils.io import atomic_write


def names(folder, recursive=False):
    return [p.relative_to(folder).as_posix() for p in images_in(folder, recursive)]


def test_only_visible_images_count(tmp_path):
    for name in ("b.JPG", "a.png", "._a.png", ".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == ["a.png", "b.JPG"]


def test_subfolders_on_request(tmp_path):
    for name in ("x/b.png", "a.png", ".git/c.png", "__MACOSX/d.png", "x/y/e.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path) == ["a.png"]
    assert names(tmp_path, recursive=True) == ["a.png", "x/b.png", "x/y/e.tif"]


def test_loops_of_links_end(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"")
    (tmp_path / "x" / "back").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to("self.png")
    assert names(tmp_path, recursive=True) == ["self.png", "x/a.png"]


def test_a_file_that_is_not_written_to_its_end_does_not_count(tmp_path):
    # As after a kill within the block: a label of no image, or half an image.
    with atomic_write(tmp_path / "a.png") as unfinished:
        unfinished.write_bytes(b"")
        assert names(tmp_path) == []
    assert names(tmp_path) == ["a.png"]


def test_an_image_that_no_table_could_name_is_refused(tmp_path):
    (tmp_path / "note\udcdf.txt").write_bytes(b"")  # no image
    assert names(tmp_path) == []
    (tmp_path / "stra\udcdfe.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"stra\\udcdfe.*UTF-8.*rename it"):
        names(tmp_path)
