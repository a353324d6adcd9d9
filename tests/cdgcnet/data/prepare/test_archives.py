"""Loose files and archive members under one interface; damaged and hostile archives."""

import io
import os
import tarfile
import zipfile

import pytest

from cdgcnet.data.prepare import archives as sources
from cdgcnet.data.prepare.archives import find

WANTED = (r"pics/(?P<name>\w+)\.png", r"(?P<name>train)\.txt")


@pytest.fixture
def download(tmp_path):
    """Two wanted files and one that nobody wants."""
    folder = tmp_path / "unpacked"
    for name, text in (("pics/a.png", "A"), ("pics/b.png", "B"), ("notes/c.png", "C")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def bytes_of(file) -> bytes:
    content = file.content()
    return content if isinstance(content, bytes) else content.read_bytes()


@pytest.mark.parametrize("form", ["folder", "data.zip", "data.tar", "data.tgz", "data.tar.gz"])
def test_same_files_from_every_form(download, pack, tmp_path, form):
    src = download if form == "folder" else pack(download, tmp_path / "src" / form).parent
    found = find([src], WANTED, ())
    by_name = {match["name"]: file for match, file in found.matching(WANTED[0])}
    assert {name: bytes_of(file) for name, file in by_name.items()} == {"a": b"A", "b": b"B"}
    assert found.problems == []
    # Backwards too: a compressed tar is rewound.
    assert [bytes_of(by_name[name]) for name in "ba"] == [b"B", b"A"]
    found.close()


def test_an_archive_itself_and_non_ascii_paths(download, pack, tmp_path):
    (download / "Bilder ü 図" / "pics").mkdir(parents=True)
    (download / "Bilder ü 図" / "pics" / "d.png").write_text("D")
    archive = pack(download, tmp_path / "häufig" / "データ.zip")
    found = find([archive], WANTED, ())
    assert sorted(found.first(WANTED[0], "name")) == ["a", "b", "d"]
    found.close()


def test_a_pipe_is_named_and_not_opened(download):
    os.mkfifo(download / "pics" / "d.png")
    os.mkfifo(download / "e.zip")
    found = find([download], WANTED, ())
    assert sorted(found.first(WANTED[0], "name")) == ["a", "b"]
    assert [p.rsplit("/", 1)[1] for p in found.problems] == [
        "e.zip: not a regular file",
        "d.png: not a regular file",
    ]


def test_loose_files_come_before_archives(download, pack, tmp_path):
    # Linking a loose file is cheaper than reading it from an archive.
    pack(download, tmp_path / "data.zip")
    (download / "pics" / "a.png").write_text("loose")
    found = find([tmp_path], WANTED, ())
    assert bytes_of(found.first(WANTED[0], "name")["a"]) == b"loose"
    assert len(found.files) == 4
    found.close()


def test_a_part_of_a_folder_name_is_no_match(tmp_path):
    (tmp_path / "epics").mkdir()
    (tmp_path / "epics" / "a.png").write_text("A")
    assert find([tmp_path], WANTED, ()).files == []


def test_links_to_folders_are_followed_once(download, tmp_path):
    src = tmp_path / "src"
    src.mkdir()
    (src / "link").symlink_to(download)
    (download / "back").symlink_to(src)  # a cycle
    assert len(find([src], WANTED, ()).files) == 2


def test_macos_extras_are_no_files(download, pack, tmp_path):
    (download / "pics" / "._a.png").write_text("resource fork")
    (download / "__MACOSX" / "pics").mkdir(parents=True)
    (download / "__MACOSX" / "pics" / "a.png").write_text("resource fork")
    assert len(find([download], WANTED, ()).files) == 2
    found = find([pack(download, tmp_path / "x.zip")], WANTED, ())
    assert len(found.files) == 2
    found.close()


def test_missing_src_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find([tmp_path / "nowhere"], WANTED, ())


def test_unreadable_folder_is_a_problem(download, monkeypatch):
    # As root, permissions would not keep us out.
    real = os.scandir

    def refuse(path):
        if str(path).endswith("notes"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find([download], WANTED, ())
    assert len(found.files) == 2
    assert len(found.problems) == 1 and "notes: cannot be read (Permission denied)" in str(
        found.problems
    )


# ---------------------------------------------------------------- hostile archives


@pytest.mark.parametrize("name", ["../pics/a.png", "/pics/a.png", "x/../../pics/a.png"])
@pytest.mark.parametrize("form", ["evil.zip", "evil.tar"])
def test_paths_out_of_the_folder_are_refused(tmp_path, name, form):
    path = tmp_path / form
    if form.endswith("zip"):
        with zipfile.ZipFile(path, "w") as out:
            out.writestr(name, "A")
    else:
        with tarfile.open(path, "w") as out:
            info = tarfile.TarInfo(name)
            info.size = 1
            out.addfile(info, io.BytesIO(b"A"))
    found = find([path], WANTED, ())
    assert found.files == []
    assert len(found.problems) == 1 and "refused" in found.problems[0] and name in found.problems[0]
    found.close()


def test_links_in_a_tar_are_left_out(tmp_path):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as out:
        info = tarfile.TarInfo("pics/a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(info)
    found = find([path], WANTED, ())
    assert found.files == []
    found.close()


# ---------------------------------------------------------------- damaged archives


@pytest.mark.parametrize("form", ["data.zip", "data.tar", "data.tgz"])
def test_no_archive_at_all(tmp_path, form):
    (tmp_path / form).write_text("<html>404 not found</html>")
    found = find([tmp_path], WANTED, ())
    assert found.files == []
    assert len(found.problems) == 1
    assert form in found.problems[0] and "download it again" in found.problems[0]
    assert "\n" not in found.problems[0]


@pytest.mark.parametrize("form", ["data.tar", "data.tgz"])
def test_of_a_truncated_tar_the_first_files_are_kept(tmp_path, form):
    noise = os.urandom(40_000)  # does not compress
    path = tmp_path / form
    with tarfile.open(path, "w" if form == "data.tar" else "w:gz") as out:
        for name in ("pics/a.png", "pics/b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(noise)
            out.addfile(info, io.BytesIO(noise))
    path.write_bytes(path.read_bytes()[:60_000])  # in the middle of b
    found = find([tmp_path], WANTED, ())
    files = found.first(WANTED[0], "name")
    assert bytes_of(files["a"]) == noise
    assert len(found.problems) == 1 and form in found.problems[0]
    if "b" in files:
        with pytest.raises(ValueError, match=rf"{form}: pics/b.png: .*download it again"):
            files["b"].content()
    found.close()


def test_a_damaged_zip_member_is_named_and_the_others_are_read(download, pack, tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as out:  # stored: the bytes are found again
        out.writestr("pics/a.png", "intact")
        out.writestr("pics/b.png", "damaged")
    path.write_bytes(path.read_bytes().replace(b"damaged", b"dAmaged"))
    found = find([path], WANTED, ())
    files = found.first(WANTED[0], "name")
    assert bytes_of(files["a"]) == b"intact"
    with pytest.raises(ValueError, match=r"data\.zip: pics/b\.png: .*CRC"):
        files["b"].content()
    found.close()


# ---------------------------------------------------------------- archives of other names


@pytest.mark.parametrize(
    ("form", "official", "expected"),
    [
        ("renamed.tgz", (), 0),  # the wanted file comes too late: 3 > 2
        ("renamed.tgz", ("renamed.tgz",), 1),
        ("renamed.tar", (), 1),  # not compressed: looking through is cheap
        ("renamed.zip", (), 1),
    ],
)
def test_unknown_compressed_tars_are_looked_into_at_their_start(
    tmp_path, pack, monkeypatch, form, official, expected
):
    monkeypatch.setattr(sources, "_PEEK", 2)
    folder = tmp_path / "unpacked"
    for name in ("a/1", "a/2", "pics/z.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    found = find([pack(folder, tmp_path / "src" / form)], WANTED, official)
    assert len(found.files) == expected
    found.close()


# ---------------------------------------------------------------- text files


def test_lines_are_stripped_and_blank_ones_dropped(tmp_path, pack):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    (folder / "train.txt").write_bytes(b"a \r\n\r\n b\n")
    for src in (folder, pack(folder, tmp_path / "x.zip")):
        found = find([src], WANTED, ())
        assert found.files[0].lines() == ["a", "b"]
        found.close()


def test_binary_data_where_a_list_is_expected(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    found = find([tmp_path], WANTED, ())
    with pytest.raises(ValueError, match=r"train\.txt: expected a text file"):
        found.files[0].lines()


def test_what_was_looked_for_and_found_is_said(download, pack, tmp_path):
    pack(download, tmp_path / "src" / "data.zip")
    found = find([tmp_path / "src"], WANTED, ())
    message = str(found.nothing("Birds", "  birds.zip"))
    assert "Birds not found" in message and "birds.zip" in message
    assert "1 files" in message and "data.zip" in message
    found.close()
