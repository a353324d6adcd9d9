"""VOC, COCO-Stuff, PASCAL-Context and ADE20K: the right files, and the right classes in them."""

import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cdgcnet import register_all
from cdgcnet.data.datasets import coco_stuff, voc
from cdgcnet.data.datasets.catalog import color_map, look_up_table
from cdgcnet.data.decoding import image_size
from cdgcnet.data.label_io import read_checked_labels, read_sample_labels
from cdgcnet.data.label_spec import LabelSpec

# Real files: lists and a subset of VOC. See CONTRIBUTING.md.
REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))


@pytest.fixture(autouse=True)
def restore_registrations():
    yield
    register_all()


def write(path: Path, labels=None, size=(2, 3)) -> Path:
    """An image, or a label PNG with these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8) if labels is None else np.array(labels, np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def listed(path: Path, *stems: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{s}\n" for s in stems), encoding="utf-8")


def labels_of(name: str) -> np.ndarray:
    """The first image's labels as the model sees them, checked."""
    entry = DatasetCatalog.get(name)[0]
    classes = len(MetadataCatalog.get(name).stuff_classes)
    labels = read_sample_labels(entry, LabelSpec(classes), image_size(entry["sem_seg_file_name"]))
    assert labels is not None
    return labels


# ---------------------------------------------------------------- shared


def test_color_map_by_hand():
    # 1 = bit 0: red 128; 2 = bit 1: green 128; 4 = bit 2: blue 128; 8 = bit 3: red 64.
    assert color_map(9)[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert color_map(9)[8] == (64, 0, 0)
    assert len(set(color_map(256))) == 256


def test_look_up_table_knows_classes_ignored_and_nothing_else():
    table = look_up_table({5: 0, 7: 1}, ignored=[0, 255])
    # 254 is not a class of any dataset: such labels are refused when they are checked.
    assert [table[v] for v in (5, 7, 0, 255, 6)] == [0, 1, 255, 255, 254]
    assert len(table) == 256


# ---------------------------------------------------------------- VOC


@pytest.fixture
def voc_root(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in ("2007_1", "2008_2", "2009_3"):
        write(folder / "JPEGImages" / f"{stem}.jpg")
    write(folder / "SegmentationClass" / "2007_1.png", [[0, 1, 255]])
    for stem in ("2007_1", "2008_2"):
        write(folder / "SegmentationClassAug" / f"{stem}.png", [[0, 20, 0]])
    lists = folder / "ImageSets" / "Segmentation"
    listed(lists / "train.txt", "2007_1")
    listed(lists / "train_aug.txt", "2008_2", "2007_1")
    listed(lists / "test.txt", "2009_3")
    return tmp_path


def test_voc_splits_take_their_labels(voc_root):
    register_all(voc_root)
    [train] = DatasetCatalog.get("cdgc_voc_train")
    assert train["sem_seg_file_name"].endswith("SegmentationClass/2007_1.png")
    aug = DatasetCatalog.get("cdgc_voc_train_aug")
    assert [d["image_id"] for d in aug] == ["2008_2", "2007_1"]  # the list's order
    assert all("SegmentationClassAug" in d["sem_seg_file_name"] for d in aug)
    [test] = DatasetCatalog.get("cdgc_voc_test")
    assert "sem_seg_file_name" not in test
    assert labels_of("cdgc_voc_train").tolist() == [[0, 1, 255]]


def test_voc_palette_and_gray_labels_are_the_same_indices(voc_root):
    path = voc_root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_1.png"
    palette = Image.fromarray(np.array([[0, 1, 255]], np.uint8))
    palette.putpalette([c for color in color_map(256) for c in color])
    palette.save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    register_all(voc_root)
    assert labels_of("cdgc_voc_train").tolist() == [[0, 1, 255]]


def test_missing_aug_list_names_the_command(voc_root):
    register_all(voc_root)
    with pytest.raises(FileNotFoundError, match=r"trainval_aug\.txt.*cdgcnet prepare voc-aug"):
        DatasetCatalog.get("cdgc_voc_trainval_aug")


def test_missing_files_are_counted_and_the_first_is_named(voc_root):
    (voc_root / "VOCdevkit/VOC2012/SegmentationClassAug/2008_2.png").unlink()
    (voc_root / "VOCdevkit/VOC2012/JPEGImages/2007_1.jpg").unlink()
    register_all(voc_root)
    with pytest.raises(FileNotFoundError, match=r"2 files of 2 .*2008_2\.png, .*2007_1\.jpg"):
        DatasetCatalog.get("cdgc_voc_train_aug")


def test_empty_list_is_refused(voc_root):
    listed(voc_root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt")
    register_all(voc_root)
    with pytest.raises(FileNotFoundError, match="cdgc_voc_val: the split is empty"):
        DatasetCatalog.get("cdgc_voc_val")


def test_voc_below_a_folder_with_other_letters(voc_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("Daten Größe 数据")
    (voc_root / "VOCdevkit").rename(root / "VOCdevkit")
    register_all(root)
    assert labels_of("cdgc_voc_train").tolist() == [[0, 1, 255]]


# ---------------------------------------------------------------- COCO-Stuff


def test_coco_stuff_classes_are_the_annotated_ids():
    assert len(coco_stuff.IDS) == len(coco_stuff.NAMES) == len(set(coco_stuff.NAMES)) == 171
    by_id = dict(zip(coco_stuff.IDS, coco_stuff.NAMES, strict=True))
    # From the official table: 1 person, 13 stop sign (12 street sign is never annotated),
    # 90 toothbrush, 92 banner (91, hair brush, is never annotated),
    # 182 wood.
    assert (by_id[1], by_id[13], by_id[90], by_id[92], by_id[182]) == (
        "person",
        "stop sign",
        "toothbrush",
        "banner",
        "wood",
    )
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91} & set(coco_stuff.IDS)


def test_coco_stuff_names_are_the_published_ones():
    path = REAL / "lists" / "cocostuff10k" / "cocostuff-labels.txt"
    if not path.is_file():
        pytest.skip(f"needs {path} (DETECTRON2_DATASETS)")
    lines = (line.split(": ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line)
    official = {int(number): name.strip() for number, name in lines}
    assert [official[i] for i in coco_stuff.IDS] == list(coco_stuff.NAMES)


def test_coco_stuff_10k(tmp_path):
    folder = tmp_path / "coco_stuff_10k"
    write(folder / "images" / "COCO_1.jpg")
    write(folder / "labels" / "COCO_1.png", [[0, 170, 255]])
    listed(folder / "imageLists" / "test.txt", "COCO_1")
    register_all(tmp_path)
    assert labels_of("cdgc_coco_stuff_10k_test").tolist() == [[0, 170, 255]]
    with pytest.raises(FileNotFoundError, match=r"train\.txt.*cdgcnet prepare coco-stuff-10k"):
        DatasetCatalog.get("cdgc_coco_stuff_10k_train")


def test_coco_stuff_164k_values_are_ids_minus_one(tmp_path):
    write(tmp_path / "coco" / "val2017" / "000000000139.jpg")
    labels = tmp_path / "coco" / "stuffthingmaps" / "val2017" / "000000000139.png"
    # Raw 0 is id 1, person, class 0. Raw 12 is id 13, stop sign: one gap (12) below, class 11.
    # Raw 181 is id 182, wood: 11 gaps below, class 170.
    write(labels, [[0, 12, 181, 255]])
    register_all(tmp_path)
    assert labels_of("cdgc_coco_stuff_164k_val").tolist() == [[0, 11, 170, 255]]
    write(labels, [[0, 11, 181, 255]])  # raw 11 is id 12, which does not occur
    with pytest.raises(ValueError, match="the dataset does not know label value 11"):
        labels_of("cdgc_coco_stuff_164k_val")


# ---------------------------------------------------------------- PASCAL-Context, ADE20K


def test_pascal_context_with_and_without_background(tmp_path):
    folder = tmp_path / "VOCdevkit" / "VOC2010"
    write(folder / "JPEGImages" / "a.jpg")
    write(folder / "SegmentationClassContext" / "a.png", [[0, 1, 59]])
    listed(folder / "ImageSets" / "SegmentationContext" / "val.txt", "a")
    register_all(tmp_path)
    assert labels_of("cdgc_pascal_context_60_val").tolist() == [[0, 1, 59]]
    assert labels_of("cdgc_pascal_context_59_val").tolist() == [[255, 0, 58]]
    with60, with59 = (MetadataCatalog.get(f"cdgc_pascal_context_{n}_val") for n in (60, 59))
    assert with60.stuff_classes[1:] == with59.stuff_classes
    assert with60.stuff_colors[1:] == with59.stuff_colors


def test_ade20k_zero_is_ignored(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    write(folder / "images" / "validation" / "ADE_val_1.jpg")
    write(folder / "annotations" / "validation" / "ADE_val_1.png", [[0, 1, 150]])
    register_all(tmp_path)
    assert labels_of("cdgc_ade20k_val").tolist() == [[255, 0, 149]]
    assert MetadataCatalog.get("cdgc_ade20k_val").stuff_classes[0] == "wall"
    write(folder / "annotations" / "validation" / "ADE_val_1.png", [[0, 1, 151]])
    with pytest.raises(ValueError, match="the dataset does not know label value 151"):
        labels_of("cdgc_ade20k_val")


@pytest.mark.parametrize(
    "name", ["cdgc_voc_val", "cdgc_coco_stuff_10k_test", "cdgc_coco_stuff_164k_val",
             "cdgc_pascal_context_59_val", "cdgc_ade20k_val"],
)  # fmt: skip
def test_missing_folder_says_where_and_what_is_expected(tmp_path, name):
    register_all(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=f"(?s){name}.*{tmp_path}.*expected layout.*DATASETS"
    ):
        DatasetCatalog.get(name)


# ---------------------------------------------------------------- real files


def test_voc_colors_are_the_published_ones():
    path = REAL / "lists" / "voc2012" / "voc2012_colors.txt"
    if not path.is_file():
        pytest.skip(f"needs {path} (DETECTRON2_DATASETS)")
    rows = [tuple(int(v) for v in line.split()) for line in path.read_text().splitlines() if line]
    assert rows == voc.COLORS


def test_real_voc_labels_are_raw_indices():
    folder = REAL / "voc2012_subset"
    if not folder.is_dir():
        pytest.skip(f"needs {folder} (DETECTRON2_DATASETS)")
    dicts = voc.load_split(folder, "val", "voc subset")
    assert len(dicts) == 120
    for entry in dicts[:10]:
        with Image.open(entry["file_name"]) as image:
            size = image.size[::-1]
        labels = read_checked_labels(entry["sem_seg_file_name"], LabelSpec(21), size)
        assert (labels == 255).any()  # the void border of the official masks
        assert set(np.unique(labels)) <= {0, 3, 8, 10, 12, 13, 15, 17, 255} | set(range(21))


# The class ids of CamVid's own NOTICE: Cityscapes label ids of its 11 classes.
CAMVID_AS_CITYSCAPES = [23, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33]


def test_camvid_as_a_cityscapes_tree_trains(tmp_path, run_yaml, monkeypatch, clean_logging):
    if not (REAL / "camvid" / "train.txt").is_file():
        pytest.skip(f"needs {REAL / 'camvid'} (DETECTRON2_DATASETS)")
    from argparse import Namespace

    from cdgcnet.engine.defaults import run, setup

    table = np.full(256, 0, np.uint8)  # void
    table[: len(CAMVID_AS_CITYSCAPES)] = CAMVID_AS_CITYSCAPES
    tree = tmp_path / "cityscapes"
    for split in ("train", "val"):
        lines = (REAL / "camvid" / f"{split}.txt").read_text().splitlines()[:3]
        for number, (image, label) in enumerate(line.split() for line in lines):
            stem = f"cam_{number:06d}_000019"
            target = tree / "leftImg8bit" / split / "cam" / f"{stem}_leftImg8bit.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(REAL / "camvid" / image) as picture:
                picture.convert("RGB").save(target)
            with Image.open(REAL / "camvid" / label) as labels:
                write(tree / "gtFine" / split / "cam" / f"{stem}_gtFine_labelIds.png",
                      table[np.asarray(labels)])  # fmt: skip
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    opts = ["OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "2"]
    args = Namespace(config_file=str(run_yaml), eval_only=False, resume=False, opts=opts)
    results = run(setup(args))
    made = tree / "gtFine" / "train" / "cam" / "cam_000000_000019_gtFine_labelTrainIds.png"
    assert set(np.unique(np.asarray(Image.open(made)))) <= {
        0,
        1,
        2,
        4,
        5,
        7,
        8,
        10,
        11,
        13,
        18,
        255,
    }
    # Classes that CamVid has count, e.g. the road; others (wall, id 12) do not.
    assert results["sem_seg"]["IoU-road"] >= 0
    assert np.isnan(results["sem_seg"]["ACC-wall"])
