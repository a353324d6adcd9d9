"""PASCAL-Context: 459 categories to 59 classes by name, splits of VOC 2010."""

from pathlib import Path

import numpy as np
import pytest

from cdgcnet.data.datasets import pascal_context as classes
from cdgcnet.data.prepare import pascal_context
from cdgcnet.data.prepare.archives import File
from cdgcnet.data.prepare.completeness import count

SPLITS = {"train": ["2008_000002", "2008_000003"], "val": ["2008_000007"]}
# Official numbers of some of the 459 categories.
OFFICIAL = {
    "aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25,
    "boat": 31, "cloth": 80, "pottedplant": 308, "sky": 360, "table": 397, "tvmonitor": 427,
    "wood": 458,
}  # fmt: skip


def official_names() -> list[str]:
    """459 names: real ones at their real numbers, the other classes on free ones."""
    names = {number: name for name, number in OFFICIAL.items()}
    rest = iter(sorted({_key(n) for n in classes.NAMES} - set(OFFICIAL)))
    for number in range(100, 460):
        if number not in names:
            name = next(rest, None)
            if name is None:
                break
            names[number] = name
    return [names.get(i, f"other {i}") for i in range(1, 460)]


def _key(name: str) -> str:
    name = name.replace(" ", "").lower()
    return {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}.get(name, name)


def class_of(name: str) -> int:
    return [_key(n) for n in classes.NAMES].index(name) + 1


@pytest.fixture
def labels_txt(tmp_path):
    """``labels_txt(names)``: the official file, "NUMBER: NAME"."""

    def write(names: list[str], folder: Path | None = None) -> Path:
        path = (folder or tmp_path) / "labels.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{i}: {name}\n" for i, name in enumerate(names, start=1)))
        return path

    return write


@pytest.fixture
def context(tmp_path, mat, labels_txt):
    """trainval.tar.gz and labels.txt, unpacked."""
    folder = tmp_path / "context"
    for names in SPLITS.values():
        for name in names:
            row = [0, 1, 2, 360, 397, 459]  # none, accordion, aeroplane, sky, table, wool
            mat(folder / "trainval" / f"{name}.mat", LabelMap=np.uint16([row] * 4))
    labels_txt(official_names(), folder)
    return folder


@pytest.fixture
def devkit(tmp_path, image):
    """VOCtrainval_03-May-2010.tar, unpacked, with a photo of neither split."""
    folder = tmp_path / "voc" / "VOCdevkit" / "VOC2010"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in SPLITS.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        # The lists per object class are not the splits.
        (folder / "ImageSets" / "Main" / f"dog_{split}.txt").write_text("2008_000002 -1\n")
        for name in [*names, "2008_000099"]:
            image(folder / "JPEGImages" / f"{name}.jpg")
    return tmp_path / "voc"


def check(root: Path, read) -> None:
    folder = root / "VOCdevkit" / "VOC2010"
    made = folder / "SegmentationClassContext"
    assert sorted(p.stem for p in made.iterdir()) == sorted(SPLITS["train"] + SPLITS["val"])
    values, mode = read(made / "2008_000007.png")
    expected = [0, 0, class_of("aeroplane"), class_of("sky"), class_of("table"), 0]
    assert mode == "P" and values[0].tolist() == expected
    lists = folder / "ImageSets" / "SegmentationContext"
    assert {s: (lists / f"{s}.txt").read_text().split() for s in SPLITS} == SPLITS
    assert not (folder / "JPEGImages" / "2008_000099.jpg").exists()


def test_unpacked_folders(prepare, context, devkit, tmp_path, read):
    splits, runner = prepare(pascal_context, context, devkit)
    assert runner.failures == []
    check(tmp_path / "root", read)
    assert count(list(splits.values()))[1] == [
        "train: 2 names, officially 4998",
        "val: 1 names, officially 5105",
    ]


def test_official_archives(prepare, context, devkit, tmp_path, pack, read):
    src = tmp_path / "src"
    pack(devkit, src / "VOCtrainval_03-May-2010.tar")
    (context / "labels.txt").rename(tmp_path / "labels.txt")  # the site has it next to the archive
    pack(context, src / "trainval.tar.gz")
    (tmp_path / "labels.txt").rename(src / "labels.txt")
    _, runner = prepare(pascal_context, src)
    assert runner.failures == []
    check(tmp_path / "root", read)
    _, again = prepare(pascal_context, src)
    assert (again.made, again.kept) == (0, runner.made)


def test_labels_txt_of_another_data_set_is_passed_over(prepare, context, devkit, tmp_path, read):
    others = [tmp_path / "coco", tmp_path / "binary"]
    for folder, data in zip(others, (b"0: unlabeled\n1: person\n", b"\xff"), strict=True):
        folder.mkdir()
        (folder / "labels.txt").write_bytes(data)
    _, runner = prepare(pascal_context, *others, context, devkit)
    assert runner.failures == []
    check(tmp_path / "root", read)


def test_all_59_classes_are_mapped_once(labels_txt):
    table = pascal_context.category_table(File(str(labels_txt(official_names()))))
    assert sorted(table[table > 0].tolist()) == list(range(1, 60))
    for name, number in OFFICIAL.items():
        assert table[number] == class_of(name)


@pytest.mark.parametrize(("found", "official"), [("dining table", "table"), ("clothes", "cloth")])
def test_names_that_the_two_official_files_spell_differently(labels_txt, found, official):
    names = [found if name == official else name for name in official_names()]
    table = pascal_context.category_table(File(str(labels_txt(names))))
    assert table[OFFICIAL[official]] == class_of(official)


def test_a_missing_class_is_named(labels_txt):
    names = ["heaven" if name == "sky" else name for name in official_names()]
    with pytest.raises(ValueError, match=r"labels\.txt: the class 'sky' is not in it"):
        pascal_context.category_table(File(str(labels_txt(names))))


@pytest.mark.parametrize("text", ["sky\n", "x: sky\n"])
def test_another_format_is_shown(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(ValueError, match=r"NUMBER: NAME.*sky"):
        pascal_context.category_table(File(str(tmp_path / "labels.txt")))


def test_59_names_are_not_459(labels_txt):
    with pytest.raises(ValueError, match="expected the 459 categories"):
        pascal_context.category_table(File(str(labels_txt(list(classes.NAMES)))))


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("trainval", "PASCAL-Context's annotations not found"),
        ("labels.txt", "labels.txt of PASCAL-Context not found"),
        ("ImageSets", "VOC 2010's lists not found"),
    ],
)
def test_nothing_to_recognize(prepare, context, devkit, tmp_path, gone, expected):
    (next(tmp_path.rglob(gone))).rename(tmp_path / "away")
    with pytest.raises(ValueError, match=expected):
        prepare(pascal_context, context, devkit)


def test_damaged_annotations(prepare, context, devkit, mat, tmp_path):
    folder = context / "trainval"
    mat(folder / "2008_000002.mat", LabelMap=np.full((4, 6), 460, np.uint16))
    mat(folder / "2008_000003.mat", LabelMap=np.ones((6, 4), np.uint16))
    mat(folder / "2008_000007.mat", S=1)
    _, runner = prepare(pascal_context, context, devkit)
    value, size, variable = sorted(runner.failures)
    assert "2008_000002.mat: label value 460" in value
    assert "2008_000003.mat: the labels are 6 x 4" in size
    assert "2008_000007.mat" in variable and "no variable LabelMap" in variable
    assert not list((tmp_path / "root").rglob("*.png"))
