"""Cityscapes from zips, folders and what people make of them."""

import json
from pathlib import Path

import numpy as np
import pytest

from cdgcnet.data.prepare import cityscapes
from cdgcnet.data.prepare.completeness import count

FRAMES = {"train": ("aachen_000000_000019", "ulm_000001_000019"), "val": ("lindau_000000_000019",)}
# Label ids of road, sidewalk, ego vehicle, person, license plate's car, bicycle …
IDS = np.uint8([[7, 8, 1, 24, 26, 33]] * 4)
# … and their train ids: ego vehicle is not trained on.
TRAIN_IDS = [[0, 1, 255, 11, 13, 18]] * 4


@pytest.fixture
def frame(image, png):
    """``frame(folder, split, frame)``: an image and its official labels."""

    def write(folder: Path, split: str, name: str, labels: bool = True, kind: str = "gtFine"):
        city = name.split("_")[0]
        image(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        if labels:
            stem = folder / kind / split / city / f"{name}_{kind}"
            for what in ("labelIds", "instanceIds", "color"):
                png(stem.with_name(f"{stem.name}_{what}.png"), IDS)
            square = {"label": "car", "polygon": [[0, 0], [5, 0], [5, 3], [0, 3]]}
            polygons = {"imgHeight": 4, "imgWidth": 6, "objects": [square]}
            stem.with_name(f"{stem.name}_polygons.json").write_text(json.dumps(polygons))

    return write


@pytest.fixture
def download(tmp_path, frame):
    """Folders as they come out of the official archives, one above the other."""
    src = tmp_path / "src"
    images, labels = src / "leftImg8bit_trainvaltest", src / "gtFine_trainvaltest"
    for split, names in FRAMES.items():
        for name in names:
            frame(src, split, name)
    frame(src, "test", "berlin_000000_000019")  # the official test labels are dummies
    for folder, kind in ((images, "leftImg8bit"), (labels, "gtFine")):
        folder.mkdir()
        (folder / "README").write_text("x")
        (src / kind).rename(folder / kind)
    return src


def names_below(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def check(root: Path, read) -> None:
    folder = root / "cityscapes"
    name = "aachen_000000_000019_gtFine"
    here = folder / "gtFine" / "train" / "aachen"
    expected = ("instanceIds.png", "labelIds.png", "labelTrainIds.png", "polygons.json")
    assert names_below(here) == [f"{name}_{what}" for what in expected]
    assert read(here / f"{name}_labelTrainIds.png")[0].tolist() == TRAIN_IDS
    # The test images are there, their dummy labels are not.
    assert len(names_below(folder / "leftImg8bit" / "test")) == 1
    assert not (folder / "gtFine" / "test").exists()
    assert len(names_below(folder)) == 4 + 3 * 4


def test_unpacked_folders_are_linked(prepare, download, tmp_path, read):
    splits, runner = prepare(cityscapes, download)
    assert runner.failures == []
    check(tmp_path / "root", read)
    target = next((tmp_path / "root").rglob("ulm*_leftImg8bit.png"))
    assert target.samefile(next(download.rglob("ulm*_leftImg8bit.png")))
    assert {s: len(split.pairs) for s, split in splits.items()} == {
        "train": 2, "val": 1, "test": 1, "train_extra": 0,
    }  # fmt: skip


def test_official_zips(prepare, download, tmp_path, pack, read):
    for name in ("leftImg8bit_trainvaltest", "gtFine_trainvaltest"):
        pack(download / name, tmp_path / "zips" / f"{name}.zip")
    _, runner = prepare(cityscapes, tmp_path / "zips")
    assert runner.failures == [] and runner.made == 4 + 3 * 4
    check(tmp_path / "root", read)
    _, again = prepare(cityscapes, tmp_path / "zips")
    assert (again.made, again.kept) == (0, 16)


def test_the_root_itself_as_source(prepare, download, tmp_path, tree):
    prepare(cityscapes, download)
    folder = tmp_path / "root" / "cityscapes"
    before = tree(folder)
    for made in folder.rglob("*_labelTrainIds.png"):
        made.unlink()
    _, runner = prepare(cityscapes, tmp_path / "root")
    assert runner.made == 3
    assert tree(folder) == before


def test_train_extra_with_coarse_labels(prepare, download, frame, tmp_path, read):
    extra, coarse = "bayreuth_000000_000019", tmp_path / "coarse"
    frame(coarse, "train_extra", extra, kind="gtCoarse")
    frame(coarse, "train_extra", "erlangen_000000_000019", kind="gtCoarse")
    # Without its image a label is of no use and is not unpacked.
    next(coarse.rglob("erlangen*_leftImg8bit.png")).unlink()
    splits, _ = prepare(cityscapes, download, coarse)
    here = tmp_path / "root" / "cityscapes" / "gtCoarse" / "train_extra"
    made = here / "bayreuth" / f"{extra}_gtCoarse_labelTrainIds.png"
    assert read(made)[0].tolist() == TRAIN_IDS
    assert [label for _, label in splits["train_extra"].pairs] == [made]
    assert not (here / "erlangen").exists()


def test_polygons_do_where_label_ids_are_missing(prepare, download, tmp_path, read):
    for file in download.rglob("*_labelIds.png"):
        file.unlink()
    next(download.rglob("ulm*_leftImg8bit.png")).write_bytes(b"x")
    _, runner = prepare(cityscapes, download)
    assert len(runner.failures) == 1 and "ulm" in runner.failures[0]
    made = next((tmp_path / "root").rglob("aachen*_labelTrainIds.png"))
    assert read(made)[0][1, 2] == 13  # inside the car


def test_train_ids_alone_are_taken_as_they_are(prepare, download, png, tmp_path, read):
    for file in [*download.rglob("*_labelIds.png"), *download.rglob("*_polygons.json")]:
        png(file.with_name(file.name.rpartition("_")[0] + "_labelTrainIds.png"), 5)
        file.unlink()
    _, runner = prepare(cityscapes, download)
    assert runner.failures == []
    made = next((tmp_path / "root").rglob("aachen*_labelTrainIds.png"))
    assert np.unique(read(made)[0]).tolist() == [5]


def test_a_short_city_is_named(prepare, download):
    splits, _ = prepare(cityscapes, download)
    table, problems = count(list(splits.values()))
    assert "train: 2 names, officially 2975" in problems
    assert "train: aachen has 1 images, officially 174" in problems
    assert "train: zurich has 0 images, officially 122" in problems
    assert "train_extra  0         0         19998       absent (optional)" in table


def test_official_counts_per_city_add_up():
    for split, cities in cityscapes.CITIES.items():
        assert sum(cities.values()) == cityscapes.COUNTS[split]


@pytest.mark.parametrize("gone", ["images", "labels"])
def test_nothing_to_recognize(prepare, download, gone):
    for file in download.rglob("*"):
        if file.is_file() and ("leftImg8bit" in file.name) == (gone == "images"):
            file.unlink()
    with pytest.raises(ValueError, match=gone) as caught:
        prepare(cityscapes, download)
    assert "gtFine_trainvaltest.zip" in str(caught.value) and "Found: " in str(caught.value)


def test_damaged_files_are_named_and_the_others_made(prepare, download, image, tmp_path):
    cut = next(download.rglob("ulm*_leftImg8bit.png"))
    cut.write_bytes(cut.read_bytes()[:-30])  # the end of the pixels
    image(next(download.rglob("lindau*_leftImg8bit.png")), height=5)
    _, runner = prepare(cityscapes, download)
    assert len(list((tmp_path / "root").rglob("*_labelTrainIds.png"))) == 1
    ulm, lindau = sorted(runner.failures)  # train before val
    assert "lindau" in lindau and "the labels are 4 x 6, but the image" in lindau
    assert "ulm_000001_000019_leftImg8bit.png: not a readable image" in ulm
