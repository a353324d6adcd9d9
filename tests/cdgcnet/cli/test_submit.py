"""Packages for the test servers: what is in them, and every reason to refuse one."""

import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from cdgcnet import Trainer, load_cfg, register_all
from cdgcnet.data.datasets.cityscapes_classes import LABEL_IDS
from cdgcnet.data.datasets.voc import NAMES as VOC_NAMES
from cdgcnet.evaluation.submission import pack, server_of, verify
from cdgcnet.evaluation.writers import label_paths

CITYSCAPES, VOC = server_of("cityscapes"), server_of("voc")


@pytest.fixture
def cities(tmp_path):
    """Three images of two cities and label maps of train ids: (image files, label maps)."""
    images = []
    for city, frame in (("bonn", 0), ("bonn", 1), ("ulm", 0)):
        path = tmp_path / "leftImg8bit/test" / city / f"{city}_000000_{frame:06}_leftImg8bit.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(path)
        images.append(str(path))
    labels = label_paths(tmp_path / "labels", images)
    for i, path in enumerate(labels.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(i, i + 24, dtype=np.uint8).reshape(4, 6) % 19).save(path)
    return images, [labels[i] for i in images]


@pytest.fixture
def pascal(tmp_path):
    images, labels = [], []
    for i, size in enumerate([(5, 7), (6, 6)]):
        path = tmp_path / f"2008_{i:06}.jpg"
        Image.new("RGB", size).save(path)
        label = tmp_path / "labels" / f"2008_{i:06}.png"
        label.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full(size[::-1], 20 - i, np.uint8)).save(label)
        images.append(str(path))
        labels.append(label)
    return images, labels


# ---------------------------------------------------------------- what is in a package


def test_cityscapes_package_holds_label_ids(cities, tmp_path):
    images, labels = cities
    package = tmp_path / "out" / "package.zip"
    pack(CITYSCAPES, images, labels, package)
    with zipfile.ZipFile(package) as archive:
        assert archive.namelist() == [
            "bonn_000000_000000_labelIds.png",
            "bonn_000000_000001_labelIds.png",
            "ulm_000000_000000_labelIds.png",
        ]
        image = Image.open(io.BytesIO(archive.read(archive.namelist()[0])))
    assert image.mode == "L"
    # Train ids 0 to 18, then 0 to 4: road is 7, ..., bicycle 33.
    expected = np.array([*LABEL_IDS, *LABEL_IDS[:5]]).reshape(4, 6)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert verify(CITYSCAPES, images, package) == []
    assert [p.name for p in package.parent.iterdir()] == ["package.zip"]  # nothing else is left


@pytest.mark.parametrize("competition", ["comp5", "comp6"])
def test_voc_package_holds_palette_images(pascal, tmp_path, competition):
    images, labels = pascal
    package = tmp_path / "package.tgz"
    pack(server_of("voc", competition), images, labels, package)
    with tarfile.open(package) as tar:
        names = tar.getnames()
        image = Image.open(io.BytesIO(tar.extractfile(names[0]).read()))
    folder = f"results/VOC2012/Segmentation/{competition}_test_cls"
    assert names == [f"{folder}/2008_000000.png", f"{folder}/2008_000001.png"]
    assert image.mode == "P" and (np.asarray(image) == 20).all()
    tvmonitor = image.getpalette()[3 * 20 : 3 * 21]
    assert VOC_NAMES[20] == "tvmonitor" and tvmonitor == [0, 64, 128]


# ---------------------------------------------------------------- reasons to refuse


def png(values, mode="L", palette=None) -> bytes:
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image.putpalette(palette)
    elif mode != "L":
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


ROAD = np.full((4, 6), 7)
MISTAKES = {
    "missing": (lambda files: files.pop("ulm_000000_000000_labelIds.png"), "ulm_.*: missing"),
    "strange": (lambda files: files.update({"readme.txt": b"hello"}), "readme.txt: belongs to no"),
    "double": (
        lambda files: files.update({"sub/ulm_000000_000000_again.png": png(ROAD)}),
        "ulm_.*: 2 files for one image",
    ),
    "train ids": (
        lambda files: files.update({"ulm_000000_000000_labelIds.png": png(ROAD * 0)}),
        r"holds the values \[0\]; expected \[7, 8, 11",
    ),
    "size": (
        lambda files: files.update({"ulm_000000_000000_labelIds.png": png(ROAD.T)}),
        "6 x 4; the image is 4 x 6",
    ),
    "mode": (
        lambda files: files.update({"ulm_000000_000000_labelIds.png": png(ROAD, "RGB")}),
        "pixel format RGB; expected L",
    ),
    "cut off": (
        lambda files: files.update({"ulm_000000_000000_labelIds.png": png(ROAD)[:45]}),
        "ulm_.*: not a readable image",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_verification_names_what_is_wrong(cities, tmp_path, kind):
    images, labels = cities
    pack(CITYSCAPES, images, labels, tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change, words = MISTAKES[kind]
    change(files)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    [reason] = verify(CITYSCAPES, images, tmp_path / "bad.zip")
    assert re.search(words, reason), reason


def test_voc_verification_requires_the_folder_and_the_palette(pascal, tmp_path):
    images, _ = pascal
    with tarfile.open(tmp_path / "bad.tgz", "w:gz") as tar:
        gray = [c for i in range(256) for c in (i, i, i)]
        for name, data in (
            ("results/VOC2012/Segmentation/comp6_test_cls/2008_000000.png",
             png(np.ones((7, 5)), "P", gray)),
            ("2008_000001.png", png(np.zeros((6, 6)), "P", VOC.palette)),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    palette, elsewhere, missing = verify(VOC, images, tmp_path / "bad.tgz")
    assert palette.endswith(
        "comp6_test_cls/2008_000000.png: its palette is not that of the dataset"
    )
    assert elsewhere.startswith("2008_000001.png: belongs to no image")
    assert missing.endswith("comp6_test_cls/2008_000001.png: missing")


def test_many_reasons_are_counted(cities, tmp_path):
    images, _ = cities
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    reasons = verify(CITYSCAPES, images, tmp_path / "empty.zip", limit=2)
    assert len(reasons) == 3 and reasons[-1] == "… and 1 more"


def test_label_maps_that_are_missing_or_wrong(cities, tmp_path):
    images, labels = cities
    package = tmp_path / "package.zip"
    whole = labels[1].read_bytes()
    for damage, words in (
        (lambda: labels[1].unlink(), "1 of 3 label maps are missing, the first is .*000001"),
        (lambda: Image.fromarray(np.zeros((2, 2), np.uint8)).save(labels[1]), "is 2 x 2, but"),
        (lambda: Image.fromarray(np.full((4, 6), 19, np.uint8)).save(labels[1]), "value 19 is no"),
    ):
        damage()
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            pack(CITYSCAPES, images, labels, package)
        assert not list(tmp_path.glob("package*"))
    labels[1].write_bytes(whole)
    pack(CITYSCAPES, images, labels, package)
    with pytest.raises(FileExistsError, match=r"package\.zip exists"):
        pack(CITYSCAPES, images, labels, package)


def test_files_that_are_no_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        verify(CITYSCAPES, [], tmp_path / "gone.zip")
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"x\.zip: not a readable package"):
        verify(CITYSCAPES, [], tmp_path / "x.zip")


def test_images_named_otherwise():
    with pytest.raises(ValueError, match="not named as an image of Cityscapes"):
        CITYSCAPES.entry(Path("photo.png"))


# ---------------------------------------------------------------- the command


@pytest.fixture
def weights(run_yaml, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"model": Trainer.build_model(load_cfg(str(run_yaml))).state_dict()}, path)
    return path


@pytest.mark.parametrize("tta", [False, True])
def test_from_weights_to_a_verified_package(
    run_data, run_yaml, weights, tmp_path, capsys, clean_logging, command, tta
):
    package = tmp_path / "package.zip"
    start = ["cityscapes", "--dataset", "cdgc_cityscapes_val"]
    predict = ["--config-file", run_yaml, "--weights", weights, "--output", package, "--opts"]
    predict += ["OUTPUT_DIR", tmp_path / "run", "TEST.AUG.ENABLED", tta]
    assert command("submit", *start, *predict) == 0
    assert "3 label maps, verified" in capsys.readouterr().out
    assert command("submit", *start, "--verify", package) == 0
    labels = tmp_path / "run/inference" / ("cdgc_cityscapes_val" + "_TTA" * tta) / "labels"
    assert command("submit", *start, "--labels", labels, "--output", tmp_path / "again.zip") == 0
    assert (tmp_path / "again.zip").stat().st_size == package.stat().st_size


@pytest.mark.slow
def test_two_processes_share_the_prediction(run_data, run_yaml, weights, tmp_path):
    words = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc-per-node", 2, "-m", "cdgcnet", "submit", "cityscapes"]
    words += ["--dataset", "cdgc_cityscapes_val", "--config-file", run_yaml, "--weights", weights]
    words += ["--output", tmp_path / "package.zip", "--opts", "OUTPUT_DIR", tmp_path / "run"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([str(word) for word in words], check=True, timeout=300, env=environment)
    with zipfile.ZipFile(tmp_path / "package.zip") as archive:
        assert len(archive.namelist()) == 3


def test_wrong_arguments(run_data, tmp_path, capsys, command):
    there = tmp_path / "there.zip"
    there.write_bytes(b"mine")
    for code, argv, words in (
        (2, ["cityscapes"], "give one of --config-file, --labels and --verify; found none"),
        (2, ["cityscapes", "--labels", "x", "--verify", "y"], "found --labels and --verify"),
        (2, ["cityscapes", "--labels", "x"], "--output is missing"),
        (1, ["cityscapes", "--labels", tmp_path, "--output", "x.tgz"], "expected a name with .zip"),
        (
            1,
            ["voc", "--labels", tmp_path, "--output", "x.zip"],
            r"expected .* \.tgz or \.tar\.gz",
        ),
        (1, ["cityscapes", "--labels", "x", "--output", there], "there.zip exists"),
        (1, ["cityscapes", "--labels", tmp_path / "x", "--output", "x.zip"], "no such folder"),
        (2, ["cityscapes", "--config-file", "x", "--output", "x.zip"], "go together"),
        (2, ["cityscapes", "--verify", "x.zip", "--opts", "SEED", "1"], "nothing is predicted"),
        (1, ["cityscapes", "--verify", tmp_path / "x.zip"], "x.zip: there is no such file"),
        (1, ["cityscapes", "--verify", there], "cdgc_cityscapes_test: there is no folder"),
    ):
        assert command("submit", *argv) == code
        assert re.search(words, capsys.readouterr().err), words
    assert there.read_bytes() == b"mine"


def test_a_refused_package_has_exit_status_1(run_data, tmp_path, capsys, command):
    register_all()
    assert len(DatasetCatalog.get("cdgc_cityscapes_val")) == 3
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    arguments = ["--dataset", "cdgc_cityscapes_val", "--verify", tmp_path / "empty.zip"]
    assert command("submit", "cityscapes", *arguments) == 1
    out, err = capsys.readouterr()
    assert "empty.zip: refused" in out and err.count("missing") == 3
