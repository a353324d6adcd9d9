"""cdgcnet prepare: exit codes, tables, messages; killed, interrupted, full-disk runs."""

import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdgcnet.cli.main import main
from cdgcnet.cli.prepare import DATASETS
from cdgcnet.data.prepare import camvid

TOOL = Path(__file__).resolve().parents[3] / "tools" / "prepare_data.py"
SPLITS = {"train": 3, "val": 2, "test": 1}


def encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def segnet(tmp_path):
    """``segnet(splits, size)``: SegNet's CamVid folder with so many frames per split."""

    def write(splits=None, size=(4, 6)) -> Path:
        image = encoded(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
        label = encoded(np.random.default_rng(1).integers(0, 12, size, np.uint8))
        for split, number in (SPLITS if splits is None else splits).items():
            for folder, data in ((split, image), (f"{split}annot", label)):
                here = tmp_path / "src ü" / "CamVid" / folder
                here.mkdir(parents=True)
                for i in range(number):
                    (here / f"{i:03}.png").write_bytes(data)
        return tmp_path / "src ü"

    return write


@pytest.fixture
def official(monkeypatch):
    """As if the small dataset were the official one."""
    monkeypatch.setattr(camvid, "COUNTS", SPLITS)


def run(*argv) -> int:
    return main(["prepare", *map(str, argv)])


def tree(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


# ---------------------------------------------------------------- what it says and returns


@pytest.mark.usefixtures("official")
def test_complete(segnet, tmp_path, capsys):
    src, root = segnet(), tmp_path / "root"
    before = tree(src)
    assert run("camvid", "--src", src, "--root", root, "--workers", 0) == 0
    out = capsys.readouterr().out
    assert f"{root / 'camvid'}: 12 files made, 0 were there" in out  # 6 images, 6 labels
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["train", "3", "3", "3", "ok"],
        ["val", "2", "2", "2", "ok"],
        ["test", "1", "1", "1", "ok"],
    ]
    assert run("camvid", "--src", src, "--root", root, "--workers", 0) == 0
    assert "0 files made" in capsys.readouterr().out
    assert tree(src) == before


def test_short(segnet, tmp_path, capsys):
    assert run("camvid", "--src", segnet(), "--root", tmp_path / "root", "--workers", 0) == 1
    out, err = capsys.readouterr()
    assert "INCOMPLETE" in out
    assert "missing: train: 3 names, officially 367" in err


@pytest.mark.usefixtures("official")
def test_a_damaged_file_is_reported_and_the_others_are_made(segnet, tmp_path, capsys):
    src = segnet()
    bad = src / "CamVid" / "trainannot" / "001.png"
    bad.write_bytes(b"x")
    assert run("camvid", "--src", src, "--root", tmp_path / "root", "--workers", 0) == 1
    err = capsys.readouterr().err
    assert f"failed: {bad}: not a readable label image" in err
    assert "missing: train: 1 labels are missing" in err and "001.png" in err
    assert len(list((tmp_path / "root" / "camvid" / "labels").rglob("*.png"))) == 5
    # Mended, the same command makes the rest.
    bad.write_bytes(encoded(np.zeros((4, 6), np.uint8)))
    assert run("camvid", "--src", src, "--root", tmp_path / "root", "--workers", 0) == 0


@pytest.mark.usefixtures("official")
def test_a_damaged_archive_is_reported_and_matters_if_a_file_is_missing(segnet, tmp_path, capsys):
    src = segnet()
    (src / "more.zip").write_text("half")
    argv = ["camvid", "--src", src, "--root", tmp_path / "root", "--workers", 0]
    assert run(*argv) == 0
    assert "note: " in (err := capsys.readouterr().err) and "more.zip: not a whole archive" in err
    (tmp_path / "root" / "camvid" / "labels" / "val" / "000.png").unlink()
    (src / "CamVid" / "val" / "000.png").unlink()
    assert run(*argv) == 1


@pytest.mark.parametrize("command", DATASETS)
def test_nothing_to_recognize(command, tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "holiday.jpg").touch()
    root = tmp_path / "root"
    assert run(command, "--src", tmp_path / "src", "--root", root, "--workers", 0) == 1
    err = capsys.readouterr().err
    assert "not found. Looked for:" in err and "Found: 1 files" in err
    assert not root.exists()


def test_missing_source(tmp_path, capsys):
    assert run("camvid", "--src", tmp_path / "gone", "--root", tmp_path / "root") == 1
    assert f"--src {tmp_path / 'gone'}: there is no such file or folder" in capsys.readouterr().err


def test_wrong_arguments(tmp_path, capsys):
    for argv in (["camvid"], ["camvids"], ["camvid", "--src", "a", "--root", "b", "--workers=-1"]):
        with pytest.raises(SystemExit) as stop:
            run(*argv)
        assert stop.value.code == 2
    assert "--workers: -1: expected 0 or more" in capsys.readouterr().err


def test_a_missing_package_is_named(tmp_path, capsys, monkeypatch):
    for name in ("coco_stuff", "matlab"):
        monkeypatch.delitem(sys.modules, f"cdgcnet.data.prepare.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert run("coco-stuff-10k", "--src", tmp_path, "--root", tmp_path) == 1
    err = capsys.readouterr().err
    assert "h5py" in err and "pip install 'cdgcnet[data]'" in err


# ---------------------------------------------------------------- runs that do not reach the end


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "is read-only")]
)
def test_a_full_or_read_only_disk(segnet, tmp_path, capsys, monkeypatch, number, advice):
    src, root = segnet(), tmp_path / "root"
    real = Path.replace
    calls = []

    def fail_ninth(self, target):
        calls.append(target)
        if len(calls) == 9:
            raise OSError(number, os.strerror(number))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail_ninth)
    assert run("camvid", "--src", src, "--root", root, "--workers", 0) == 1
    out, err = capsys.readouterr()
    assert advice in err and "5 files made" in out  # after the three lists
    kept = tree(root)
    assert len(kept) == 8 and not any(".part" in name for name in kept)
    monkeypatch.undo()
    monkeypatch.setattr(camvid, "COUNTS", SPLITS)
    assert run("camvid", "--src", src, "--root", root, "--workers", 0) == 0
    assert kept.items() <= tree(root).items()


@pytest.mark.usefixtures("official")
def test_an_interrupted_run_resumes(segnet, tmp_path, capsys, monkeypatch):
    src, root = segnet(), tmp_path / "root"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(camvid, "save_labels", interrupt)
        assert run("camvid", "--src", src, "--root", root, "--workers", 0) == 130
    out, err = capsys.readouterr()
    assert "6 files made" in out and "interrupted" in err
    assert run("camvid", "--src", src, "--root", root, "--workers", 0) == 0
    assert "6 files made" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_files(segnet, tmp_path):
    src = segnet({"train": 60}, size=(300, 400))
    labels = tmp_path / "killed" / "camvid" / "labels" / "train"
    argv = [TOOL, "camvid", "--src", src, "--root", tmp_path / "killed", "--workers", "0"]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (labels.is_dir() and any(labels.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    done = [p for p in labels.iterdir() if ".part" not in p.name]
    assert len(done) < 60
    for path in done:  # whole files, as each is renamed when it is finished
        assert np.asarray(Image.open(path)).shape == (300, 400)
    for root in ("killed", "whole"):
        assert run("camvid", "--src", src, "--root", tmp_path / root, "--workers", 0) == 1
    finished = {n: b for n, b in tree(tmp_path / "killed").items() if ".part" not in n}
    assert finished == tree(tmp_path / "whole")
