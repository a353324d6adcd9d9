"""VOC animals: lists, sizes, classes; and that the data of the records is reproduced exactly."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdgcnet.data.datasets.custom import parse_classes
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.data.prepare import voc_animals
from cdgcnet.data.prepare.completeness import count, read_list

TRAIN, VAL = (voc_animals.listed_names(split)[0] for split in ("train", "val"))


@pytest.fixture
def devkit(tmp_path):
    """Two of VOC's images: stripes of black and gray columns, and twelve values of labels."""
    folder = tmp_path / "src" / "VOCdevkit" / "VOC2012"
    for kind in ("JPEGImages", "SegmentationClassAug"):
        (folder / kind).mkdir(parents=True)
    stripes = np.zeros((360, 540, 3), np.uint8)
    stripes[:, 1::2] = 200
    values = np.uint8([[0, 8, 10, 12, 13, 15], [17, 255, 1, 20, 3, 18]])
    labels = Image.fromarray(values.repeat(180, axis=0).repeat(90, axis=1))
    labels.putpalette([i * 7 % 256 for i in range(768)])
    for name in (TRAIN, VAL):
        photo = folder / "JPEGImages" / f"{name}.jpg"
        Image.fromarray(stripes).save(photo, quality=100, subsampling=0)
        labels.save(folder / "SegmentationClassAug" / f"{name}.png")
    return tmp_path / "src"


def test_the_lists():
    train, val = (voc_animals.listed_names(split) for split in ("train", "val"))
    assert (len(set(train)), len(set(val))) == (len(train), len(val)) == (3131, 222)
    assert not set(train) & set(val)


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((375, 500), (180, 240)),
        ((500, 333), (270, 180)),  # 270.27
        ((288, 500), (180, 312)),  # 312.5: to the even number
        ((500, 480), (188, 180)),  # 187.5
    ],
)
def test_reduced_size(size, reduced):
    assert voc_animals.reduced_size(*size) == reduced


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels(prepare, devkit, tmp_path, read, pack, packed):
    src = pack(devkit, tmp_path / "VOCtrainval_11-May-2012.tar") if packed else devkit
    splits, runner = prepare(voc_animals, src)
    assert runner.failures == []
    folder = tmp_path / "root" / "voc_animals"
    for split, name in (("train", TRAIN), ("val", VAL)):
        # Two columns of 0 and 200 become one of their mean; the nearest would be 0 or 200.
        with Image.open(folder / "images" / split / f"{name}.jpg") as image:
            assert image.format == "JPEG"
            assert np.abs(np.asarray(image).astype(int) - 100).max() <= 2
        values, mode = read(folder / "labels" / split / f"{name}.png")
        assert values.shape == (180, 270) and mode == "P"
        # background, cat, cow, dog, horse, person, sheep; border, aeroplane, tv, bird, sofa
        assert values[::90, ::45].tolist() == [[0, 1, 2, 3, 4, 5], [6, 255, 255, 255, 255, 255]]
    names, colors = parse_classes(read_list(folder / "classes.txt"))
    assert names == list(voc_animals.CLASSES) and colors[1] == (64, 0, 0)
    # The others are named as missing.
    _, problems = count(list(splits.values()))
    assert any(p.startswith("train: 3130 images are missing in") for p in problems)
    assert any(p.startswith("val: 221 labels are missing in") for p in problems)


def test_a_second_run_makes_nothing(prepare, devkit, tmp_path, tree):
    _, first = prepare(voc_animals, devkit)
    made = tree(tmp_path / "root")
    _, second = prepare(voc_animals, devkit)
    assert (first.made, second.made, second.kept) == (4, 0, 4)
    assert tree(tmp_path / "root") == made


@pytest.mark.parametrize(
    ("kind", "what"), [("JPEGImages", "photos"), ("SegmentationClassAug", "labels")]
)
def test_photos_or_labels_are_not_there(prepare, devkit, tmp_path, kind, what):
    for path in devkit.rglob(f"{kind}/*"):
        path.unlink()
    with pytest.raises(ValueError, match=f"the {what} of VOC 2012 not found") as caught:
        prepare(voc_animals, devkit)
    assert "cdgcnet prepare voc-aug" in str(caught.value)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("photo", "not a readable image"),
        ("value", "label value 21 is not a VOC label"),
        ("size", "the labels are 180 x 240, but the image"),
    ],
)
def test_damaged_files(prepare, devkit, damage, expected):
    photo = next(devkit.rglob(f"{TRAIN}.jpg"))
    label = next(devkit.rglob(f"{TRAIN}.png"))
    if damage == "photo":
        photo.write_bytes(photo.read_bytes()[:-200])
    else:
        size = (360, 540) if damage == "value" else (360, 480)
        Image.fromarray(np.full(size, 21 if damage == "value" else 0, np.uint8)).save(label)
    _, runner = prepare(voc_animals, devkit)
    [failure] = runner.failures
    assert str(photo if damage == "photo" else label) in failure and expected in failure
    assert runner.made == (2 if damage == "photo" else 3)


def test_other_data_in_the_folder_is_refused(prepare, devkit, tmp_path):
    stranger = tmp_path / "root" / "voc_animals" / "images" / "val" / f"{TRAIN}.jpg"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"{TRAIN}\.jpg: not an image of VOC animals"):
        prepare(voc_animals, devkit, overwrite=True)
    assert stranger.read_bytes() == b"mine"


def test_other_classes_are_not_overwritten(prepare, devkit, tmp_path):
    classes = tmp_path / "root" / "voc_animals" / "classes.txt"
    classes.parent.mkdir(parents=True)
    classes.write_text("cat\nbackground\n")
    with pytest.raises(ValueError, match=r"classes\.txt: holds other classes than background, cat"):
        prepare(voc_animals, devkit)
    assert classes.read_text() == "cat\nbackground\n"
    prepare(voc_animals, devkit, overwrite=True)
    assert read_list(classes)[0] == "background 0 0 0"


# ---------------------------------------------------------------- real files


def data(folder: str) -> Path:
    path = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / folder
    if not path.is_dir():
        pytest.skip(f"needs {folder} in DETECTRON2_DATASETS")
    return path


def test_the_lists_are_parts_of_vocs():
    lists = data("lists") / "voc2012"
    for split, whole in (("train", "train_aug"), ("val", "val")):
        assert set(voc_animals.listed_names(split)) <= set(read_list(lists / f"{whole}.txt"))


@pytest.mark.slow
def test_the_data_of_the_records_is_reproduced(prepare, tmp_path):
    """Every pixel of labels and images, for all of VOC's originals that are at hand."""
    originals, records = data("voc2012_subset"), data("voc_animals")
    _, runner = prepare(voc_animals, originals)
    assert runner.failures == []
    made = sorted(p for p in (tmp_path / "root").rglob("*") if p.suffix in (".jpg", ".png"))
    assert len(made) == runner.made > 0
    for path in made:
        theirs = records / path.relative_to(tmp_path / "root" / "voc_animals")
        read = read_labels if path.suffix == ".png" else read_image
        assert np.array_equal(read(path), read(theirs)), path.name
    ours = tmp_path / "root" / "voc_animals" / "classes.txt"
    assert ours.read_text() == (records / "classes.txt").read_text()
