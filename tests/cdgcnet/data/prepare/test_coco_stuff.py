"""COCO-Stuff-10k: both versions give the same classes, and one is never read as the other."""

import os
from pathlib import Path

import numpy as np
import pytest

from cdgcnet.data.prepare import coco_stuff
from cdgcnet.data.prepare.completeness import count

NAMES = {
    "train": ["COCO_train2014_000000000077", "COCO_train2014_000000000113"],
    "test": ["COCO_train2014_000000000825"],
}
# unlabeled, person 1, bicycle 2, stop sign 13 (12 is a gap), toothbrush 90 (11 gaps below: 91
# was a gap, too), the first stuff id 92, the last 182.
V11 = [[0, 1, 2, 13, 90, 182]] * 2 + [[92] * 6] * 2
# The same in version 1.0: unlabeled 1, things from 2, stuff from 82 to 172.
V10 = [[1, 2, 3, 13, 81, 172]] * 2 + [[82] * 6] * 2
# Contiguous: 13 − 1 gap below − 1 = 11; 90 − 10 gaps − 1 = 79; 92 − 11 − 1 = 80; 182 − 12 = 170.
CLASSES = [[255, 0, 1, 11, 79, 170]] * 2 + [[80] * 6] * 2


def cells(count: int) -> np.ndarray:
    """A MATLAB cell array of class names."""
    names = np.empty((count, 1), object)
    names[:, 0] = "name"
    return names


@pytest.fixture
def annotate(mat, mat73):
    """``annotate(path, version, labels)`` with the official fields; names are optional."""

    def write(path: Path, version: str, labels, names: bool = True) -> Path:
        labels = np.array(labels)
        if version == "1.1":
            # The official upgrade to 1.1 made numbers of MATLAB's default type, double.
            fields = {"names": cells(182)} if names else {}
            return mat(path, S=labels.astype(float), **fields)
        # HDF5 holds references to the names; their number is what counts.
        fields = {"names": np.zeros((172, 1), np.uint64)} if names else {}
        return mat73(path, S=labels.astype(np.uint16), **fields)

    return write


@pytest.fixture
def download(tmp_path, image, annotate):
    """``download(version)``: the official folder."""

    def write(version: str, names: bool = True) -> Path:
        folder = tmp_path / f"v{version}" / "dataset"
        (folder / "imageLists").mkdir(parents=True)
        for split, listed in NAMES.items():
            (folder / "imageLists" / f"{split}.txt").write_text("\n".join(listed))
            for name in listed:
                image(folder / "images" / f"{name}.jpg")
                labels = V11 if version == "1.1" else V10
                annotate(folder / "annotations" / f"{name}.mat", version, labels, names)
        return folder.parent

    return write


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_both_versions_give_the_same_classes(prepare, download, tmp_path, read, version, names):
    splits, runner = prepare(coco_stuff, download(version, names))
    assert runner.failures == []
    for _, label in splits["train"].pairs + splits["test"].pairs:
        values, mode = read(label)
        assert mode == "P" and values.tolist() == CLASSES
    assert {s: len(x.pairs) for s, x in splits.items()} == {"train": 2, "test": 1}
    assert (tmp_path / "root" / "coco_stuff_10k" / "imageLists" / "train.txt").is_file()


@pytest.mark.parametrize("name", ["cocostuff-10k-v1.1.zip", "renamed.zip"])
def test_from_the_zip_file(prepare, download, tmp_path, pack, read, name):
    pack(download("1.1"), tmp_path / "src" / name)
    splits, runner = prepare(coco_stuff, tmp_path / "src")
    assert runner.failures == []
    assert read(splits["test"].pairs[0][1])[0].tolist() == CLASSES
    _, again = prepare(coco_stuff, tmp_path / "src")
    assert (again.made, again.kept) == (0, runner.made)


def test_every_value_of_both_tables():
    (v11, _), (v10, _) = coco_stuff.tables()["1.1"], coco_stuff.tables()["1.0"]
    assert (v11[0], v10[1], v10[0]) == (255, 255, -1)
    assert np.flatnonzero(v11 < 0).tolist() == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]
    assert v11[v11 >= 0][1:].tolist() == list(range(171))
    assert v10[2:].tolist() == list(range(171))


def test_version_1_0_values_in_a_file_of_version_1_1(prepare, download, annotate, tmp_path):
    src = download("1.1")
    file = next(src.rglob("*000000113.mat"))
    annotate(file, "1.1", [[2, 3, 12, 26, 172, 82]] * 4)  # 12 and 26 are gaps of version 1.1
    _, runner = prepare(coco_stuff, src)
    assert len(runner.failures) == 1
    assert str(file) in runner.failures[0]
    assert "label value 12" in runner.failures[0] and "version 1.1" in runner.failures[0]
    assert not list((tmp_path / "root").rglob("*000000113.png"))


@pytest.mark.parametrize(
    ("version", "value"), [("1.1", 183), ("1.1", 255), ("1.0", 0), ("1.0", 173)]
)
def test_values_out_of_range(prepare, download, annotate, version, value):
    src = download(version)
    annotate(next(src.rglob("*000000113.mat")), version, [[value] * 6] * 4)
    _, runner = prepare(coco_stuff, src)
    assert len(runner.failures) == 1 and f"label value {value}" in runner.failures[0]


@pytest.mark.parametrize("names", [True, False])
def test_a_mixture_of_versions_is_refused(prepare, download, annotate, tmp_path, names):
    src = download("1.1", names)
    annotate(next(src.rglob("*000000825.mat")), "1.0", V10, names)
    _, runner = prepare(coco_stuff, src)
    assert len(runner.failures) == 1
    assert "is of version 1.0, others here are of 1.1" in runner.failures[0]
    assert len(list((tmp_path / "root").rglob("*.png"))) == 2


def test_another_number_of_names_is_another_data_set(prepare, download, mat):
    src = download("1.1")
    mat(next(src.rglob("*000000113.mat")), S=np.array(V11), names=cells(33))
    _, runner = prepare(coco_stuff, src)
    assert len(runner.failures) == 1 and "lists 33 class names" in runner.failures[0]


def test_one_damaged_file_does_not_stop_the_others(prepare, download, tmp_path):
    src = download("1.0")
    for name, keep in (("*000000077.mat", 700), ("*000000113.mat", 0)):  # also the first of all
        file = next(src.rglob(name))
        file.write_bytes(file.read_bytes()[:keep])
    splits, runner = prepare(coco_stuff, src)
    assert len(runner.failures) == 2
    assert all("not a readable MATLAB file" in f for f in runner.failures)
    assert splits["test"].pairs[0][1].is_file()
    _, problems = count([splits["train"]])
    assert any("2 labels are missing" in p and "000000077.png" in p for p in problems)


def test_annotations_that_are_all_damaged(prepare, download):
    src = download("1.1")
    for file in src.rglob("*.mat"):
        file.write_bytes(b"")
    _, runner = prepare(coco_stuff, src)
    assert len(runner.failures) == 3


@pytest.mark.parametrize("gone", ["imageLists/test.txt", "annotations"])
def test_nothing_to_recognize(prepare, download, gone):
    src = download("1.1")
    here = src / "dataset" / gone
    here.rename(src / "away")
    with pytest.raises(ValueError, match="COCO-Stuff-10k not found"):
        prepare(coco_stuff, src)


def test_ids_are_those_of_the_official_label_file():
    path = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    path = path / "lists" / "cocostuff10k" / "cocostuff-labels.txt"
    if not path.is_file():
        pytest.skip("needs lists/cocostuff10k in DETECTRON2_DATASETS")
    official = [int(line.partition(":")[0]) for line in path.read_text().splitlines()]
    table, _ = coco_stuff.tables()["1.1"]
    assert official == list(range(len(table)))
    assert (table >= 0).sum() == 171 + 1
