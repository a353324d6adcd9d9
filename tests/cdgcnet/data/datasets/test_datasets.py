"""Registrations: explicit, idempotent, and clear about what is missing."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from cdgcnet import register_all
from cdgcnet.data.datasets import camvid, cityscapes, datasets_root
from cdgcnet.data.datasets.cityscapes_labels import make_train_ids
from cdgcnet.data.label_io import read_labels

SPLITS = {
    "camvid": ("train", "val", "test"),
    "cityscapes": ("train", "val", "trainval", "test", "train_extra"),
    "streets": ("train", "val"),
    "voc": ("train_aug", "train", "val", "trainval_aug", "test"),
    "coco_stuff_10k": ("train", "test"),
    "coco_stuff_164k": ("train", "val"),
    "pascal_context_59": ("train", "val"),
    "pascal_context_60": ("train", "val"),
    "ade20k": ("train", "val"),
}
CLASSES = {
    "camvid": 11,
    "cityscapes": 19,
    "streets": 19,
    "voc": 21,
    "coco_stuff_10k": 171,
    "coco_stuff_164k": 171,
    "pascal_context_59": 59,
    "pascal_context_60": 60,
    "ade20k": 150,
}
NAMES = [f"cdgc_{name}_{split}" for name, splits in SPLITS.items() for split in splits]


@pytest.fixture(autouse=True)
def restore_registrations():
    """Other tests find the datasets where the environment says."""
    yield
    register_all()


def write_image(path: Path, shape=(4, 6, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    return path


def write_cityscapes(root: Path, count: int = 2) -> Path:
    """Two cities; written in an order that is not the sorted one."""
    folder = root / "cityscapes"
    for split in ("train", "val"):
        for city in ("ulm", "bonn"):
            for i in reversed(range(count)):
                stem = f"{city}_{i:06d}_000019"
                write_image(folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
                for kind in ("labelIds", "labelTrainIds"):
                    label = f"{stem}_gtFine_{kind}.png"
                    write_image(folder / "gtFine" / split / city / label, (4, 6))
    return folder


def write_camvid(root: Path, lines: str | None = None) -> Path:
    folder = root / "camvid"
    for name in ("b", "a"):
        write_image(folder / "images" / "train" / f"{name}.jpg")
        write_image(folder / "labels" / "train" / f"{name}.png", (4, 6))
    if lines is None:
        lines = "".join(f"images/train/{n}.jpg labels/train/{n}.png\n" for n in ("b", "a"))
    (folder / "train.txt").write_text(lines, encoding="utf-8")
    return folder


# ---------------------------------------------------------------- registration


def test_importing_registers_no_data_set():
    code = (
        "import cdgcnet, cdgcnet.data.datasets\n"
        "from detectron2.data import DatasetCatalog as D\n"
        "print(sum(n.startswith('cdgc_') for n in D.list()))\n"
        "cdgcnet.register_all()\n"
        "print(sum(n.startswith('cdgc_') for n in D.list()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split()
    assert before == "0" and int(after) >= len(NAMES)


def test_register_all_twice_is_harmless_and_reads_nothing(tmp_path):
    missing = tmp_path / "not" / "there"
    register_all(missing)
    register_all(missing)
    assert set(NAMES) <= set(DatasetCatalog.list())
    assert not missing.exists()


def test_another_root_replaces_the_first(tmp_path):
    for root in ("one", "two"):
        write_cityscapes(tmp_path / root, count=1 if root == "one" else 2)
    register_all(tmp_path / "one")
    assert len(DatasetCatalog.get("cdgc_cityscapes_val")) == 2
    register_all(tmp_path / "two")
    second = DatasetCatalog.get("cdgc_cityscapes_val")
    assert len(second) == 4
    assert all(d["file_name"].startswith(str(tmp_path / "two")) for d in second)


def test_root_comes_from_the_variable(tmp_path, monkeypatch):
    write_cityscapes(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_all()
    assert DatasetCatalog.get("cdgc_cityscapes_val")[0]["file_name"].startswith(str(tmp_path))
    # An argument beats the variable.
    register_all(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        DatasetCatalog.get("cdgc_cityscapes_val")


def test_root_is_datasets_in_the_working_folder_without_the_variable(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert datasets_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert datasets_root() == Path(os.path.expanduser("~")) / "data"


# ---------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", NAMES)
def test_metadata_is_complete(name):
    register_all()
    metadata = MetadataCatalog.get(name)
    [count] = {n for key, n in CLASSES.items() if name.startswith(f"cdgc_{key}_")}
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == count
    contiguous = metadata.stuff_dataset_id_to_contiguous_id
    assert sorted(contiguous.values()) == list(range(count))
    assert metadata.evaluator_type == "cdgc_sem_seg"
    assert len(metadata.stuff_colors) == len(set(metadata.stuff_colors)) == count
    assert all(len(c) == 3 and all(0 <= v <= 255 for v in c) for c in metadata.stuff_colors)
    assert metadata.ignore_label == 255
    if count == 19:
        assert metadata.stuff_dataset_id_to_contiguous_id[33] == 18  # bicycle


def test_cityscapes_table_is_the_official_one():
    # trainId 0, 1, 2, 8, 10, 13 and 18 of cityscapesscripts.helpers.labels.
    found = {
        name: (i, cityscapes.LABEL_IDS[i], cityscapes.COLORS[i])
        for i, name in enumerate(cityscapes.NAMES)
    }
    assert found["road"] == (0, 7, (128, 64, 128))
    assert found["sidewalk"] == (1, 8, (244, 35, 232))
    assert found["building"] == (2, 11, (70, 70, 70))
    assert found["vegetation"] == (8, 21, (107, 142, 35))
    assert found["sky"] == (10, 23, (70, 130, 180))
    assert found["car"] == (13, 26, (0, 0, 142))
    assert found["bicycle"] == (18, 33, (119, 11, 32))


@pytest.mark.parametrize("name", [f"cdgc_{n}_{splits[0]}" for n, splits in SPLITS.items()])
def test_detectron2s_visualizer_understands_the_metadata(name):
    register_all()
    metadata = MetadataCatalog.get(name)
    labels = np.zeros((60, 80), np.uint8)
    labels[:, 40:] = 1
    labels[:10] = 255  # the ignore label is not a class and must not be drawn as one
    drawn = Visualizer(np.zeros((60, 80, 3), np.uint8), metadata).draw_sem_seg(labels, alpha=1.0)
    picture = drawn.get_image()
    assert picture.shape == (60, 80, 3)
    # A corner far from text and edges has the class's own color.
    np.testing.assert_allclose(picture[57, 3], metadata.stuff_colors[0], atol=2)
    np.testing.assert_allclose(picture[57, 77], metadata.stuff_colors[1], atol=2)
    assert picture[2, 2].max() == 0


# ---------------------------------------------------------------- Cityscapes


def test_cityscapes_tree(tmp_path):
    folder = write_cityscapes(tmp_path)
    register_all(tmp_path)
    dicts = DatasetCatalog.get("cdgc_cityscapes_train")
    ids = ["bonn_000000_000019", "bonn_000001_000019", "ulm_000000_000019", "ulm_000001_000019"]
    assert [d["image_id"] for d in dicts] == ids  # sorted: the order is part of a run's seed
    for d, stem in zip(dicts, ids, strict=True):
        city = stem.split("_")[0]
        image = folder / "leftImg8bit" / "train" / city / f"{stem}_leftImg8bit.png"
        label = folder / "gtFine" / "train" / city / f"{stem}_gtFine_labelTrainIds.png"
        assert (d["file_name"], d["sem_seg_file_name"]) == (str(image), str(label))


@pytest.mark.parametrize("name", ["cdgc_cityscapes_train", "cdgc_camvid_train"])
def test_missing_folder_names_folder_layout_and_variable(tmp_path, name):
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get(name)
    message = str(caught.value)
    assert name in message
    assert str(tmp_path / name.split("_")[1]) in message
    assert "expected layout" in message
    assert "DETECTRON2_DATASETS" in message


def test_relative_root_is_shown_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_all("data")
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get("cdgc_camvid_val")
    assert str(tmp_path / "data" / "camvid") in str(caught.value)


def test_missing_labels_name_the_file_and_the_tool(tmp_path):
    folder = write_cityscapes(tmp_path)
    for file in (folder / "gtFine" / "val").glob("*/*.png"):
        file.unlink()
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get("cdgc_cityscapes_val")
    message = str(caught.value)
    assert "4 files of 4 images" in message
    assert "bonn_000000_000019_gtFine_labelTrainIds.png" in message
    assert f"cdgcnet prepare cityscapes --src DOWNLOADS --root {tmp_path}" in message


def test_one_missing_label_is_not_passed_over(tmp_path):
    folder = write_cityscapes(tmp_path)
    for gone in (folder / "gtFine" / "val").glob("ulm/*000001*"):
        gone.unlink()
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"1 files of 4 .*ulm_000001_000019_gtFine_label"):
        DatasetCatalog.get("cdgc_cityscapes_val")


def test_empty_cityscapes_split(tmp_path):
    folder = write_cityscapes(tmp_path)
    (folder / "leftImg8bit" / "val").rename(folder / "away")
    (folder / "leftImg8bit" / "val" / "ulm").mkdir(parents=True)
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError, match="cdgc_cityscapes_val: the split is empty"):
        DatasetCatalog.get("cdgc_cityscapes_val")


def test_trainval_is_train_then_val_and_test_has_no_labels(tmp_path):
    folder = write_cityscapes(tmp_path)
    write_image(folder / "leftImg8bit" / "test" / "bonn" / "bonn_9_9_leftImg8bit.png")
    register_all(tmp_path)
    both = DatasetCatalog.get("cdgc_cityscapes_trainval")
    parts = [DatasetCatalog.get(f"cdgc_cityscapes_{s}") for s in ("train", "val")]
    assert both == parts[0] + parts[1]
    [test] = DatasetCatalog.get("cdgc_cityscapes_test")
    assert test["image_id"] == "bonn_9_9" and "sem_seg_file_name" not in test


def test_train_extra_takes_the_coarse_labels(tmp_path):
    folder = tmp_path / "cityscapes"
    write_image(folder / "leftImg8bit" / "train_extra" / "bonn" / "bonn_1_1_leftImg8bit.png")
    labels = folder / "gtCoarse" / "train_extra" / "bonn" / "bonn_1_1_gtCoarse_labelTrainIds.png"
    write_image(labels, (4, 6))
    register_all(tmp_path)
    [entry] = DatasetCatalog.get("cdgc_cityscapes_train_extra")
    assert entry["sem_seg_file_name"] == str(labels)


def test_instances_are_found_in_place(tmp_path):
    folder = write_cityscapes(tmp_path, count=1)
    instances = folder / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png"
    write_image(instances, (4, 6))
    register_all(tmp_path)
    bonn, ulm = DatasetCatalog.get("cdgc_cityscapes_val")
    assert "instance_file_name" not in bonn
    assert ulm["instance_file_name"] == str(instances)


# ---------------------------------------------------------------- Cityscapes' train ids


def label_file(tmp_path, ids, ending="labelIds") -> Path:
    path = tmp_path / f"a_gtFine_{ending}.png"
    Image.fromarray(np.array(ids, np.uint8)).save(path)
    return path


def test_train_ids_of_label_ids_by_hand(tmp_path):
    # road 7 -> 0, license plate and other ids that are not scored -> 255, bicycle 33 -> 18.
    source = label_file(tmp_path, [[7, 0, 9], [33, 24, 29]])
    make_train_ids(source, tmp_path / "out.png")
    assert read_labels(tmp_path / "out.png").tolist() == [[0, 255, 255], [18, 11, 255]]


def test_train_ids_are_cityscapesscripts_own(tmp_path):
    official = pytest.importorskip("cityscapesscripts.helpers.labels")
    ids = [label.id for label in official.labels if label.id >= 0]
    make_train_ids(label_file(tmp_path, [ids]), tmp_path / "out.png")
    expected = [official.id2label[i].trainId for i in ids]
    assert read_labels(tmp_path / "out.png")[0].tolist() == [t if t >= 0 else 255 for t in expected]


def test_value_that_is_no_label_id_is_named(tmp_path):
    source = label_file(tmp_path, [[7, 34]])
    with pytest.raises(
        ValueError, match=rf"{source.name}: label value 34 is not a Cityscapes label"
    ):
        make_train_ids(source, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def polygons(tmp_path, content: str) -> Path:
    path = tmp_path / "a_gtFine_polygons.json"
    path.write_text(content, encoding="utf-8")
    return path


def test_train_ids_of_polygons(tmp_path):
    pytest.importorskip("cityscapesscripts")
    # Everything road, a car over the right half: PIL draws a polygon's edge too.
    road = {"label": "road", "polygon": [[0, 0], [39, 0], [39, 19], [0, 19]]}
    car = {"label": "car", "polygon": [[20, 0], [39, 0], [39, 19], [20, 19]]}
    content = json.dumps({"imgHeight": 20, "imgWidth": 40, "objects": [road, car]})
    make_train_ids(polygons(tmp_path, content), tmp_path / "out.png")
    labels = read_labels(tmp_path / "out.png")
    assert labels.shape == (20, 40)
    assert (labels[:, :19] == 0).all() and (labels[:, 21:] == 13).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON"),
        ("{}", "no Cityscapes polygons"),
        (
            '{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "ufo", "polygon": []}]}',
            "no Cityscapes polygons",
        ),
    ],
)
def test_broken_polygons_are_named(tmp_path, content, message):
    pytest.importorskip("cityscapesscripts")
    with pytest.raises(ValueError, match=rf"a_gtFine_polygons\.json: .*{message}"):
        make_train_ids(polygons(tmp_path, content), tmp_path / "out.png")


def test_absent_train_ids_are_made_when_the_set_is_listed(tmp_path, caplog):
    # As the official download comes: label ids, but no train ids.
    folder = write_cityscapes(tmp_path)
    made = sorted((folder / "gtFine" / "val").glob("*/*labelTrainIds.png"))
    for file in made:
        file.unlink()
    register_all(tmp_path)
    with caplog.at_level("INFO", logger="cdgcnet"):
        dicts = DatasetCatalog.get("cdgc_cityscapes_val")
    assert [d["sem_seg_file_name"] for d in dicts] == [str(f) for f in made]
    assert all((read_labels(f) == 255).all() for f in made)  # id 0 is "unlabeled"
    assert "Making 4" in caplog.text


def test_train_ids_on_a_read_only_disk(tmp_path, monkeypatch):
    folder = write_cityscapes(tmp_path)
    gone = next((folder / "gtFine" / "val").glob("ulm/*000001*labelTrainIds.png"))
    gone.unlink()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    register_all(tmp_path)
    message = f"read-only: choose another.*cdgcnet prepare cityscapes --src {folder}.*{gone.name}"
    with pytest.raises(OSError, match=message):
        DatasetCatalog.get("cdgc_cityscapes_val")


# ---------------------------------------------------------------- CamVid


def test_camvid_list(tmp_path):
    folder = write_camvid(tmp_path)
    register_all(tmp_path)
    dicts = DatasetCatalog.get("cdgc_camvid_train")
    assert [d["image_id"] for d in dicts] == ["b", "a"]  # the list's order
    assert dicts[0] == {
        "file_name": str(folder / "images/train/b.jpg"),
        "sem_seg_file_name": str(folder / "labels/train/b.png"),
        "image_id": "b",
    }


def test_camvid_blank_lines_are_skipped(tmp_path):
    write_camvid(tmp_path, "\nimages/train/a.jpg labels/train/a.png\n\n")
    register_all(tmp_path)
    assert len(DatasetCatalog.get("cdgc_camvid_train")) == 1


@pytest.mark.parametrize("line", ["images/train/b.jpg", "a b c", "images/train/b.jpg,labels/b.png"])
def test_malformed_camvid_line_names_file_and_line(tmp_path, line):
    folder = write_camvid(tmp_path, f"images/train/a.jpg labels/train/a.png\n{line}\n")
    register_all(tmp_path)
    with pytest.raises(ValueError) as caught:
        DatasetCatalog.get("cdgc_camvid_train")
    assert f"{folder / 'train.txt'}:2:" in str(caught.value)
    assert line in str(caught.value)


@pytest.mark.parametrize("gone", ["images/train/a.jpg", "labels/train/a.png"])
def test_missing_camvid_file_names_it_and_the_line(tmp_path, gone):
    folder = write_camvid(tmp_path)
    (folder / gone).unlink()
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get("cdgc_camvid_train")
    assert f"{folder / 'train.txt'}:2:" in str(caught.value)
    assert str(folder / gone) in str(caught.value)


def test_missing_camvid_list_names_it(tmp_path):
    folder = write_camvid(tmp_path)
    register_all(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected layout") as caught:
        DatasetCatalog.get("cdgc_camvid_val")
    assert str(folder / "val.txt") in str(caught.value)


@pytest.fixture
def camvid_sequences(tmp_path):
    """A training list with two frames of each of CamVid's sequences, in the published order."""
    folder = tmp_path / "camvid"
    lines = []
    for name in ("0001TP_1", "0001TP_2", "0006R0_1", "0016E5_1", "0016E5_2", "0006R0_2"):
        line = f"images/train/{name}.jpg labels/train/{name}.png"
        for file in line.split():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        lines.append(line)
    (folder / "train.txt").write_text("\n".join(lines))
    register_all(tmp_path)
    return folder


def test_camvid_is_held_out_by_whole_sequences(camvid_sequences):
    def ids(part):
        return [d["image_id"] for d in DatasetCatalog.get(f"cdgc_camvid_{part}")]

    assert ids("fit") == ["0001TP_1", "0001TP_2", "0016E5_1", "0016E5_2"]
    assert ids("dev") == ["0006R0_1", "0006R0_2"]
    assert sorted(ids("fit") + ids("dev")) == sorted(ids("train"))


def test_an_unknown_camvid_sequence_is_named(camvid_sequences):
    # It would silently be in neither part.
    path = camvid_sequences / "train.txt"
    path.write_text(path.read_text().replace("0001TP_2", "Seq05_2"))
    for folder, end in (("images", "jpg"), ("labels", "png")):
        (camvid_sequences / f"{folder}/train/Seq05_2.{end}").touch()
    with pytest.raises(ValueError, match=r"cdgc_camvid_dev: .*Seq05_2\.jpg.*0001TP, 0006R0"):
        DatasetCatalog.get("cdgc_camvid_dev")


def test_a_camvid_list_without_the_held_out_sequence(camvid_sequences):
    path = camvid_sequences / "train.txt"
    path.write_text("\n".join(x for x in path.read_text().splitlines() if "0006R0" not in x))
    with pytest.raises(ValueError, match=r"cdgc_camvid_dev: .*no image of 0006R0"):
        DatasetCatalog.get("cdgc_camvid_dev")


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_camvid_list(tmp_path, content):
    write_camvid(tmp_path, content)
    register_all(tmp_path)
    with pytest.raises(ValueError, match=r"cdgc_camvid_train: the list .*train\.txt is empty"):
        DatasetCatalog.get("cdgc_camvid_train")


def test_camvid_classes_in_the_order_of_the_labels():
    names = [name for name, _ in camvid.CLASSES]
    assert names[:4] == ["sky", "building", "pole", "road"] and names[-1] == "bicyclist"
