"""VOC 2012 with SBD: set arithmetic, which label comes from where, both downloads' formats."""

import os
from pathlib import Path

import numpy as np
import pytest

from cdgcnet.data.prepare import voc
from cdgcnet.data.prepare.completeness import count, read_list

# Six images. SBD's two lists overlap with all of VOC's, as in reality.
A, B, C, D, E, F = (f"2008_00000{i}" for i in range(1, 7))
VOC = {"train": [A, B], "val": [C, D], "trainval": [A, B, C, D]}
SBD = {"train": [A, C, E], "val": [D, F]}
# (SBD train ∪ SBD val ∪ VOC train) − VOC val = {A, C, E, D, F, B} − {C, D}
TRAIN_AUG = [A, B, E, F]


@pytest.fixture
def sbd_mat(mat):
    """``sbd_mat(path, labels)``: a struct GTcls with SBD's three fields."""

    def write(path: Path, labels) -> Path:
        truth = {
            "Boundaries": np.zeros((20, 1)),
            "Segmentation": np.broadcast_to(np.uint8(labels), (4, 6)),
            "CategoriesPresent": np.uint8([1]),
        }
        return mat(path, GTcls=truth)

    return write


@pytest.fixture
def devkit(tmp_path, image, png):
    """VOCtrainval_11-May-2012.tar, unpacked. G is a photo without a mask, as most are."""
    folder = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    for name in (A, B, C, D, E, F, "2008_000007"):
        image(folder / "JPEGImages" / f"{name}.jpg")
    for name in VOC["trainval"]:
        masks = [[255, 1, 2, 15, 20, 0]] * 4
        png(folder / "SegmentationClass" / f"{name}.png", masks, palette=True)
        png(folder / "SegmentationObject" / f"{name}.png", masks, palette=True)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in VOC.items():
        (lists / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    return tmp_path / "voc"


@pytest.fixture
def sbd(tmp_path, image, sbd_mat):
    """benchmark.tgz, unpacked."""
    folder = tmp_path / "sbd" / "benchmark_RELEASE" / "dataset"
    for split, names in SBD.items():
        for name in names:
            image(folder / "img" / f"{name}.jpg")
            sbd_mat(folder / "cls" / f"{name}.mat", [[3, 3, 0, 0, 20, 20]] * 4)
            sbd_mat(folder / "inst" / f"{name}.mat", 1)
        (folder / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    return tmp_path / "sbd"


def check(root: Path, read) -> None:
    folder = root / "VOCdevkit" / "VOC2012"
    lists = folder / "ImageSets" / "Segmentation"
    assert read_list(lists / "train_aug.txt") == TRAIN_AUG
    assert read_list(lists / "trainval_aug.txt") == [A, B, C, D, E, F]
    labels = folder / "SegmentationClassAug"
    assert sorted(p.stem for p in labels.iterdir()) == [A, B, C, D, E, F]
    # Official masks keep their raw indices and their border, SBD has no border.
    for name, first in ((A, [255, 1, 2, 15, 20, 0]), (D, [255, 1, 2, 15, 20, 0])):
        assert read(labels / f"{name}.png")[0][0].tolist() == first
    values, mode = read(labels / f"{E}.png")
    assert values[0].tolist() == [3, 3, 0, 0, 20, 20] and mode == "P"
    # Of the archive's images only those that are used.
    assert sorted(p.stem for p in (folder / "JPEGImages").iterdir()) == [A, B, C, D, E, F]
    assert not (folder / "SegmentationObject").exists()


def test_unpacked_folders(prepare, devkit, sbd, tmp_path, read):
    splits, runner = prepare(voc, devkit, sbd)
    assert runner.failures == []
    check(tmp_path / "root", read)
    assert {s: len(x.pairs) for s, x in splits.items()} == {
        "train_aug": 4, "trainval_aug": 6, "train": 2, "val": 2, "test": 0,
    }  # fmt: skip


def test_official_archives_and_a_second_run(prepare, devkit, sbd, tmp_path, pack, read, tree):
    src = tmp_path / "Daten ü"
    pack(devkit, src / "VOCtrainval_11-May-2012.tar")
    pack(sbd, src / "benchmark.tgz")
    before = tree(src)
    _, runner = prepare(voc, src)
    assert runner.failures == []
    check(tmp_path / "root", read)
    made = tree(tmp_path / "root")
    _, again = prepare(voc, src)
    assert (again.made, again.kept) == (0, runner.made)
    assert tree(tmp_path / "root") == made and tree(src) == before


def test_test_images_come_from_an_archive_of_their_own(prepare, devkit, sbd, image, tmp_path, pack):
    folder = tmp_path / "t" / "VOCdevkit" / "VOC2012"
    for name in ("2008_000008", "2008_000009"):
        image(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "test.txt").write_text("2008_000008\n")
    pack(tmp_path / "t", tmp_path / "src" / "VOC2012test.tar")
    splits, _ = prepare(voc, devkit, sbd, tmp_path / "src")
    pairs = splits["test"].pairs
    assert [(i.name, label) for i, label in pairs] == [("2008_000008.jpg", None)]
    assert pairs[0][0].is_file() and not pairs[0][0].with_name("2008_000009.jpg").exists()


def test_images_of_another_year_are_not_taken(prepare, devkit, sbd, image, tmp_path):
    (devkit / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{E}.jpg").unlink()
    image(tmp_path / "other" / "VOC2010" / "JPEGImages" / f"{E}.jpg")
    splits, _ = prepare(voc, devkit, sbd, tmp_path / "other")
    _, problems = count([splits["train_aug"]])
    assert any(f"1 images are missing in {tmp_path}" in p and E in p for p in problems)


def test_sbd_can_come_later(prepare, devkit, sbd, tmp_path, read):
    splits, runner = prepare(voc, devkit)
    assert runner.failures == []
    _, problems = count(list(splits.values()))
    assert any(p.startswith("train_aug: SBD's lists were not found") for p in problems)
    lists = tmp_path / "root" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    assert not (lists / "train_aug.txt").exists()  # no wrong list
    # VOC's own sets are ready, and the second run needs SBD and the images it takes from VOC.
    assert len(list((tmp_path / "root").rglob("SegmentationClassAug/*.png"))) == 4
    prepare(voc, sbd, devkit / "VOCdevkit")
    check(tmp_path / "root", read)


def test_one_list_of_sbd_is_not_enough(prepare, devkit, sbd, tmp_path):
    next(sbd.rglob("val.txt")).unlink()
    splits, _ = prepare(voc, devkit, sbd)
    assert not splits["train_aug"].pairs
    assert not list((tmp_path / "root").rglob("train_aug.txt"))


def test_a_validation_image_never_gets_sbd_labels(prepare, devkit, sbd, tmp_path):
    # D is in VOC val and in SBD: if its official mask is gone, it has no label.
    (devkit / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{D}.png").unlink()
    splits, _ = prepare(voc, devkit, sbd)
    _, problems = count([splits["val"]])
    assert any("1 labels are missing" in p and D in p for p in problems)


def test_a_changed_list_is_not_overwritten(prepare, devkit, sbd, tmp_path):
    lists = tmp_path / "root" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text(f"{A}\n")
    with pytest.raises(ValueError, match=r"train_aug\.txt: holds 1 names, .* give 4"):
        prepare(voc, devkit, sbd)
    prepare(voc, devkit, sbd, overwrite=True)
    assert read_list(lists / "train_aug.txt") == TRAIN_AUG


def test_masks_that_are_not_vocs_own_are_not_taken_for_official(
    prepare, devkit, sbd, png, tmp_path, read
):
    # Some merge other people's masks into SegmentationClass.
    png(devkit / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{E}.png", 7)
    prepare(voc, devkit, sbd)
    check(tmp_path / "root", read)
    assert not list((tmp_path / "root").rglob(f"SegmentationClass/{E}.png"))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("cut", "not a readable MATLAB file"),
        ("value", "label value 21 is not an SBD label"),
        ("inst", "no field Segmentation"),
        ("other", "no variable GTcls"),
    ],
)
def test_damaged_sbd_files(prepare, devkit, sbd, sbd_mat, mat, tmp_path, damage, expected):
    file = next(sbd.rglob(f"cls/{E}.mat"))
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    elif damage == "value":
        sbd_mat(file, 21)
    elif damage == "inst":
        mat(file, GTcls={"Boundaries": 1})
    else:
        mat(file, GTinst={"Segmentation": 1})
    _, runner = prepare(voc, devkit, sbd)
    assert len(runner.failures) == 1
    assert str(file) in runner.failures[0] and expected in runner.failures[0]
    made = tmp_path / "root" / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"
    assert sorted(p.stem for p in made.iterdir()) == [A, B, C, D, F]


@pytest.mark.parametrize("kind", ["value", "color"])
def test_damaged_official_masks(prepare, devkit, sbd, png, image, tmp_path, kind):
    file = next(devkit.rglob(f"SegmentationClass/{C}.png"))
    if kind == "value":
        png(file, 21)
    else:
        image(file)
    _, runner = prepare(voc, devkit, sbd)
    assert len(runner.failures) == 1 and f"{C}.png" in runner.failures[0]
    assert ("value 21 is not a VOC label" if kind == "value" else "color") in runner.failures[0]
    assert not list((tmp_path / "root").rglob(f"SegmentationClassAug/{C}.png"))


def test_a_truncated_sbd_archive_gives_what_it_has(prepare, devkit, sbd, tmp_path, pack):
    archive = pack(sbd, tmp_path / "src" / "benchmark.tgz")
    archive.write_bytes(archive.read_bytes()[:-400])
    _, runner = prepare(voc, devkit, tmp_path / "src")
    assert any("benchmark.tgz" in f and "download it again" in f for f in runner.failures)
    assert len(list((tmp_path / "root").rglob("SegmentationClassAug/*.png"))) >= 4


def test_nothing_to_recognize(prepare, sbd):
    with pytest.raises(ValueError, match="PASCAL VOC 2012 not found") as caught:
        prepare(voc, sbd)
    assert "VOCtrainval_11-May-2012.tar" in str(caught.value)


# ---------------------------------------------------------------- official lists, real files


def data(folder: str) -> Path:
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / folder
    if not root.is_dir():
        pytest.skip(f"needs {folder} in DETECTRON2_DATASETS")
    return root


def test_the_published_train_aug_is_this_set():
    """The published list against the laws of its definition; SBD's own lists are not at hand."""
    lists = data("lists") / "voc2012"
    train, val, aug = (set(read_list(lists / f"{n}.txt")) for n in ("train", "val", "train_aug"))
    assert (len(train), len(val), len(aug)) == (1464, 1449, voc.COUNTS["train_aug"])
    assert train <= aug and not val & aug
    assert len(aug | val) == voc.COUNTS["trainval_aug"]


def test_published_lists_are_reproduced(prepare, tmp_path, sbd_mat):
    """From lists that overlap with VOC's as SBD's do, the same set comes out."""
    lists = data("lists") / "voc2012"
    train, val, aug = (read_list(lists / f"{n}.txt") for n in ("train", "val", "train_aug"))
    segmentation = tmp_path / "src" / "VOC2012" / "ImageSets" / "Segmentation"
    segmentation.mkdir(parents=True)
    for name, names in (("train", train), ("val", val)):
        (segmentation / f"{name}.txt").write_text("\n".join(names))
    extra = sorted(set(aug) - set(train))
    # SBD holds images of VOC train and val too, in both of its lists.
    dataset = tmp_path / "src" / "dataset"
    sbd_mat(dataset / "cls" / f"{extra[0]}.mat", 1)
    (dataset / "train.txt").write_text("\n".join(extra[:8000] + train[:500] + val[:500]))
    (dataset / "val.txt").write_text("\n".join(extra[8000:] + train[400:900] + val[900:]))
    splits, _ = prepare(voc, tmp_path / "src")
    made = tmp_path / "root" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    assert read_list(made / "train_aug.txt") == sorted(aug)
    assert len(splits["trainval_aug"].pairs) == 12031


def test_real_photos_and_masks(prepare, tmp_path, read):
    """Real files, with the official masks under their official name."""
    real = data("voc2012_subset")
    src = tmp_path / "src" / "VOC2012"
    src.mkdir(parents=True)
    for name, there in (
        ("ImageSets", "ImageSets"),
        ("JPEGImages", "JPEGImages"),
        ("SegmentationClass", "SegmentationClassAug"),
    ):
        (src / name).symlink_to(real / there)
    splits, runner = prepare(voc, src)
    assert runner.failures == []
    assert [len(splits[s].pairs) for s in ("train", "val")] == [120, 120]
    for _, label in splits["val"].pairs[:3]:
        values, mode = read(label)
        assert mode == "P" and set(np.unique(values)) <= {*range(21), 255}
        np.testing.assert_array_equal(values, read(real / "SegmentationClassAug" / label.name)[0])
