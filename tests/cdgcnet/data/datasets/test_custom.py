"""Own data from DATASETS.FOLDERS: what is read, and what each mistake says."""

import argparse
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet import load_cfg
from cdgcnet.data.datasets.catalog import color_map
from cdgcnet.data.datasets.custom import (
    KEY,
    MAX_CLASSES,
    label_lut,
    parse_classes,
    register_folders,
)
from cdgcnet.data.label_io import check_labels, read_sample_labels
from cdgcnet.data.label_spec import LabelSpec

ROOT = Path(__file__).resolve().parents[4]
CLASSES = ["background", "street lamp", "car"]


@pytest.fixture(autouse=True)
def forget_registrations():
    yield
    for name in list(DatasetCatalog.list()):
        if MetadataCatalog.get(name).get("origin") == KEY:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def write_image(path: Path, shape=(4, 6, 3), value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """my/{images,labels}: b.jpg, a.png, c.d.jpg with labels; my/classes.txt."""
    for name in ("b.jpg", "a.png", "c.d.jpg"):
        write_image(tmp_path / "my" / "images" / name)
        write_image(tmp_path / "my" / "labels" / f"{Path(name).stem}.png", (4, 6), value=1)
    (tmp_path / "my" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def make_cfg(*entries, overrides=()):
    return load_cfg("", ["MODEL.DEVICE", "cpu", "DATASETS.FOLDERS", list(entries), *overrides])


def entry(**changes) -> dict:
    """A right entry with changes; None takes a key away."""
    keys = {"NAME": "mine", "IMAGES": "my/images", "LABELS": "my/labels", "CLASSES": CLASSES}
    return {k: v for k, v in {**keys, **changes}.items() if v is not None}


def load(root: Path, **changes) -> list[dict]:
    register_folders(make_cfg(entry(**changes)), root)
    return DatasetCatalog.get("mine")


# ---------------------------------------------------------------- what is read


def test_images_and_labels_are_paired_by_stem(root):
    images, labels = root / "my" / "images", root / "my" / "labels"
    assert load(root) == [
        {
            "file_name": str(images / name),
            "image_id": stem,
            "sem_seg_file_name": str(labels / f"{stem}.png"),
        }
        for stem, name in (("a", "a.png"), ("b", "b.jpg"), ("c.d", "c.d.jpg"))
    ]


def test_without_labels_the_dicts_have_none(root):
    dicts = load(root, LABELS=None)
    assert len(dicts) == 3
    assert all(set(d) == {"file_name", "image_id"} for d in dicts)


def test_hidden_files_and_files_of_other_kinds_are_no_images(root):
    for name in ("._a.png", "Thumbs.db", "notes.txt"):
        (root / "my" / "images" / name).write_bytes(b"")
    assert len(load(root)) == 3


def test_endings_in_capitals_are_images(root):
    write_image(root / "my" / "images" / "D.JPG")
    assert len(load(root, LABELS=None)) == 4


def test_label_suffix(root):
    folder = root / "my" / "labels"
    for path in list(folder.iterdir()):
        path.rename(folder / f"{path.stem}_mask.png")
    names = [Path(d["sem_seg_file_name"]).name for d in load(root, LABEL_SUFFIX="_mask.png")]
    assert names == ["a_mask.png", "b_mask.png", "c.d_mask.png"]


def test_split_chooses_and_orders_by_stem_or_file_name(root):
    (root / "split.txt").write_text("c.d\n\n  a.png \r\n", encoding="utf-8-sig")
    assert [d["image_id"] for d in load(root, SPLIT="split.txt")] == ["c.d", "a"]


def test_labels_are_only_needed_for_the_split(root):
    (root / "my" / "labels" / "b.png").unlink()
    (root / "split.txt").write_text("a\n")
    assert len(load(root, SPLIT="split.txt")) == 1


def test_absolute_paths_are_kept_and_the_root_may_come_from_the_variable(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_folders(make_cfg(entry(LABELS=str(root / "my" / "labels"))))
    first = DatasetCatalog.get("mine")[0]
    assert first["file_name"] == str(root / "my" / "images" / "a.png")
    assert first["sem_seg_file_name"] == str(root / "my" / "labels" / "a.png")


def test_nothing_but_the_class_list_is_read_at_registration(root):
    register_folders(make_cfg(entry(IMAGES="later", CLASSES="my/classes.txt")), root)
    assert MetadataCatalog.get("mine").stuff_classes == CLASSES
    with pytest.raises(FileNotFoundError, match=r"FOLDERS\[0\] \(mine\): IMAGES: .*later"):
        DatasetCatalog.get("mine")


def test_metadata_is_complete(root):
    load(root, CLASSES=["car 0 0 142", "tree"], IDS=[7, 3])
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["car", "tree"]
    assert metadata.stuff_colors == [(0, 0, 142), (0, 128, 0)]  # VOC's map: 1 is dark red, 2 green
    assert metadata.stuff_dataset_id_to_contiguous_id == {7: 0, 3: 1}
    assert metadata.evaluator_type == "cdgc_sem_seg" and metadata.ignore_label == 255


def test_registering_again_counts_and_other_sets_stay(root):
    register_folders(make_cfg(entry(), entry(NAME="other")), root)
    register_folders(make_cfg(entry(CLASSES=["one", "two"], LABELS=None)), root)
    assert MetadataCatalog.get("mine").stuff_classes == ["one", "two"]
    assert len(DatasetCatalog.get("other")) == 3


def test_no_folders_register_nothing(tmp_path):
    before = set(DatasetCatalog.list())
    register_folders(make_cfg(), tmp_path)
    assert set(DatasetCatalog.list()) == before


def test_the_entries_survive_a_dumped_config(root, tmp_path):
    cfg = make_cfg(entry(IDS=[4, 5, 6]))
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump())
    assert load_cfg(str(path)).DATASETS.FOLDERS == cfg.DATASETS.FOLDERS


# ---------------------------------------------------------------- classes and colors


def test_class_lines_with_and_without_colors():
    names, colors = parse_classes(["street lamp  250 170 30", "car", "lane 2 1 2 3", "size 10 20"])
    # Only the last three of four or more words are a color.
    assert names == ["street lamp", "car", "lane 2", "size 10 20"]
    assert colors == [(250, 170, 30), color_map(3)[2], (1, 2, 3), color_map(5)[4]]


def test_default_colors_differ_and_none_is_black():
    _, colors = parse_classes([f"class{i}" for i in range(MAX_CLASSES)])
    assert len({*colors, (0, 0, 0)}) == MAX_CLASSES + 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "0 classes"),
        (["car"], "'car' is the only class; expected 2 to 254, because with a single"),
        ([f"c{i}" for i in range(255)], "255 classes; expected 2 to 254"),
        (["car", "tree", "car"], "classes 1 and 3 are both 'car'"),
        (["car", "0 0 142"], "class 2, '0 0 142', is a color without a name"),
        (["car 0 0 256"], "class 1, 'car 0 0 256': expected a color"),
        (["car 0 -1 0"], "class 1, 'car 0 -1 0': expected a color"),
    ],
)
def test_bad_class_lists_are_named(root, lines, words):
    (root / "my" / "classes.txt").write_text("\n".join(lines))
    for value in (lines, "my/classes.txt"):
        with pytest.raises(ValueError, match=re.escape(f"{KEY}[0] (mine): CLASSES: {words}")):
            register_folders(make_cfg(entry(CLASSES=value)), root)


def test_unreadable_class_lists_are_named(root):
    (root / "latin.txt").write_bytes("stra\xdfe".encode("latin-1"))
    os.mkfifo(root / "pipe")
    for value, error, words in (
        ("gone.txt", FileNotFoundError, f"there is no file {root / 'gone.txt'}; relative paths"),
        ("latin.txt", ValueError, f"{root / 'latin.txt'} is not a readable UTF-8"),
        ("my", ValueError, f"{root / 'my'} is not a readable"),
        ("pipe", ValueError, f"{root / 'pipe'} is not a readable"),  # it would be waited for
        ([True, "car"], ValueError, "quote yes, no and numbers"),  # YAML reads yes as True
        (3, ValueError, "a text file or a list of names"),
    ):
        with pytest.raises(error, match=r"FOLDERS\[0\] \(mine\): CLASSES: ") as caught:
            register_folders(make_cfg(entry(CLASSES=value)), root)
        assert words in str(caught.value)


# ---------------------------------------------------------------- raw values


def test_ids_and_ignored_values_become_classes_and_255(root):
    lut = load(root, IDS=[10, 0, 7], IGNORE=[3, 255])[0]["sem_seg_lut"]
    assert len(lut) == 256
    #       class 0, 1, 2;  ignored;          neither
    found = [lut[v] for v in (10, 0, 7, 3, 255, 1, 2, 254)]
    assert found == [0, 1, 2, 255, 255, 254, 254, 254]


def test_there_is_no_table_where_it_would_change_nothing(root):
    assert "sem_seg_lut" not in load(root, IDS=[0, 1, 2], IGNORE=[255])[0]
    # Without 255 among the ignored values, a 255 must be refused: that takes a table.
    assert load(root, IGNORE=[])[0]["sem_seg_lut"][255] == 254
    assert load(root, IGNORE=[255, 9])[0]["sem_seg_lut"][9] == 255


raw = st.integers(0, 255)


@given(st.lists(raw, min_size=1, max_size=254, unique=True), st.sets(raw), st.data())
def test_a_value_is_refused_unless_it_is_a_class_or_ignored(ids, ignored, data):
    ignored -= set(ids)
    lut = label_lut(ids, ignored)
    value = data.draw(raw)
    labels = np.array([[value]], np.uint8)
    spec = LabelSpec(len(ids), 255, lut)
    if value in ids or value in ignored:
        check_labels(labels, spec, "label.png")
        assert spec.to_ids(labels)[0, 0] == (ids.index(value) if value in ids else 255)
    else:
        with pytest.raises(ValueError, match=r"label\.png"):
            check_labels(labels, spec, "label.png")


def test_an_unexpected_value_stops_the_reader(root):
    one = load(root, IDS=[0, 2, 4])[0]  # the files hold 1
    with pytest.raises(ValueError, match=re.escape(str(root / "my" / "labels" / "a.png"))):
        read_sample_labels(one, LabelSpec(3), (4, 6))


# ---------------------------------------------------------------- mistakes in the entry

MISTAKES = {
    "no name": ({"NAME": None}, f"{KEY}[0]: NAME is missing"),
    "no images": ({"IMAGES": None}, "(mine): IMAGES is missing"),
    "no classes": ({"CLASSES": None}, "(mine): CLASSES is missing"),
    "unknown key": ({"LABEL": "x"}, "(mine): unknown key 'LABEL'; there are"),
    "number as a name": ({"NAME": 3}, "NAME is 3; expected a text"),
    "empty folder name": ({"IMAGES": " "}, "IMAGES is ' '; expected a text"),
    "built-in name": ({"NAME": "cdgc_mine"}, "NAME is 'cdgc_mine'"),
    "name with a slash": ({"NAME": "my/train"}, "NAME is 'my/train'"),
    "name of another set": ({"NAME": "coco_2017_val"}, "(coco_2017_val): NAME belongs to another"),
    "ids, no labels": ({"LABELS": None, "IDS": [0, 1, 2]}, "IDS is given, but no LABELS"),
    "too few ids": ({"IDS": [0, 1]}, "IDS has 2 values for 3 classes"),
    "repeated id": ({"IDS": [0, 1, 1]}, "IDS is [0, 1, 1]; expected a list of different"),
    "id above 255": ({"IDS": [0, 1, 256]}, "IDS is [0, 1, 256]"),
    "id below 0": ({"IDS": [0, 1, -1]}, "IDS is [0, 1, -1]"),
    "id True": ({"IDS": [0, 2, True]}, "IDS is [0, 2, True]"),
    "ids no list": ({"IDS": "0 1 2"}, "IDS is '0 1 2'"),
    "ignore no list": ({"IGNORE": 255}, "IGNORE is 255; expected a list"),
    "class and ignored": ({"IDS": [0, 1, 255]}, "[255] are classes in IDS and also in IGNORE"),
    "JPEG labels": ({"LABEL_SUFFIX": ".JPG"}, "LABEL_SUFFIX is '.JPG'"),
    "suffix with a folder": ({"LABEL_SUFFIX": "/x.png"}, "LABEL_SUFFIX is '/x.png'"),
    "one folder": ({"LABELS": "my/images/"}, "IMAGES and LABELS are both"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_an_entry_is_named(root, name):
    changes, words = MISTAKES[name]
    with pytest.raises(ValueError, match=re.escape(KEY)) as caught:
        load(root, **changes)
    assert words in str(caught.value)


def test_an_entry_that_is_no_mapping_is_named_by_its_position(root):
    cfg = make_cfg(entry())
    cfg.DATASETS.FOLDERS.append("my_val")  # which the table of keys refuses too
    with pytest.raises(ValueError, match=r"FOLDERS\[1\] is 'my_val'; expected a mapping"):
        register_folders(cfg, root)
    assert "mine" not in DatasetCatalog.list()  # all or none


def test_two_entries_of_one_name_are_refused(root):
    with pytest.raises(ValueError, match=r"\[1\] \(mine\): NAME is that of .*\[0\] \(mine\)"):
        register_folders(make_cfg(entry(), entry()), root)


def test_another_ignore_label_of_the_model_is_refused(root):
    cfg = make_cfg(entry(), overrides=["MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "254"])
    with pytest.raises(ValueError, match=r"IGNORE_VALUE is 254; expected 255"):
        register_folders(cfg, root)
    cfg.DATASETS.FOLDERS = []
    register_folders(cfg, root)  # only own data depends on it


# ---------------------------------------------------------------- mistakes in the folders


def test_missing_labels_are_counted_and_named(root):
    for stem in ("a", "c.d"):
        (root / "my" / "labels" / f"{stem}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images .*: a\.png, c\.d\.png \(") as error:
        load(root)
    assert "FOLDERS[0] (mine)" in str(error.value) and "SPLIT" in str(error.value)


def test_missing_label_folder_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"\(mine\): LABELS: .*nowhere"):
        load(root, LABELS="my/nowhere")


def test_labels_without_images_are_a_warning(root, caplog):
    write_image(root / "my" / "labels" / "z.png", (4, 6))
    (root / "my" / "labels" / "readme.txt").write_text("no label")
    (root / "split.txt").write_text("a\n")  # b and c.d are left out by choice: no warning
    with caplog.at_level(logging.WARNING, logger="cdgcnet"):
        assert len(load(root, SPLIT="split.txt")) == 1
    assert len(caplog.messages) == 1
    assert "1 labels" in caplog.messages[0] and caplog.messages[0].endswith(": z.png")


def test_two_images_of_one_stem_are_refused(root):
    write_image(root / "my" / "images" / "a.jpg")
    with pytest.raises(ValueError, match=r"\(mine\): .* holds a\.jpg and a\.png"):
        load(root)


def test_empty_folder_is_refused(root):
    (root / "empty" / "below").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"\(mine\): .*empty holds no image$"):
        load(root, IMAGES="empty")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("a\nzebra\n", ValueError, "names 'zebra', but"),
        ("../other.png\n", ValueError, "names '../other.png', but"),
        ("../other.png a.png\n", ValueError, "names '../other.png a.png', but"),
        ("a\n./a.png\n", ValueError, "names a.png twice ('a', './a.png')"),
        ("a\na.png\n", ValueError, "names a.png twice ('a', 'a.png')"),
        ("\n", ValueError, "names no image"),
        (None, FileNotFoundError, "there is no file"),
    ],
)
def test_bad_split_is_named(root, text, error, words):
    write_image(root / "my" / "other.png")  # beside the folder of the images, not in it
    if text is not None:
        (root / "split.txt").write_text(text)
    with pytest.raises(error, match=r"FOLDERS\[0\] \(mine\)") as caught:
        load(root, SPLIT="split.txt")
    assert str(root / "split.txt") in str(caught.value) and words in str(caught.value)


# ---------------------------------------------------------------- the guide


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The guide's tree and files as printed in docs/own_data.md; returns its my.yaml."""
    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    yaml = re.search(r"<!-- tests/\S+/test_custom.py runs this -->\n```yaml\n(.+?)```", text, re.S)
    classes = re.search(r"`my/classes.txt`, .+?```\n(.+?)```", text, re.S)
    assert yaml and classes, "docs/own_data.md lost its examples"
    data = tmp_path / "data"
    for split in ("train", "val"):
        for i in range(2):
            stem = f"{split}{i}"
            write_image(data / "my" / "images" / split / f"{stem}.jpg", (40, 48, 3), 90 * i)
            labels = np.repeat([0, 1, 2, 255], 12)[None].repeat(40, 0).astype(np.uint8)
            (data / "my" / "labels" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(data / "my" / "labels" / split / f"{stem}.png")
    (data / "my" / "classes.txt").write_text(classes[1])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my.yaml").write_text(yaml[1])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    monkeypatch.chdir(tmp_path)
    return "my.yaml"


TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "from_scratch",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 8,
    "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [1, 2, 3],
    "MODEL.CDGC.CHANNELS": 8,
    "MODEL.CDGC.AUX_CHANNELS": 8,
    "INPUT.CROP.SIZE": [33, 33],
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.MAX_ITER": 1,
}


@pytest.mark.usefixtures("clean_logging")
def test_the_guide_trains_and_evaluates(guide):
    from cdgcnet.engine.defaults import run, setup

    overrides = [str(x) for pair in TINY.items() for x in pair]
    args = argparse.Namespace(config_file=guide, opts=overrides, eval_only=False, resume=False)
    cfg = setup(args)
    results = run(cfg)
    assert {"IoU-background", "IoU-street lamp", "IoU-car"} <= set(results["sem_seg"])
    assert json.loads((Path("output/my") / "results.json").read_text())["sem_seg"]["mIoU"] >= 0


@pytest.mark.usefixtures("clean_logging")
def test_a_run_predicts_without_its_data_and_is_tuned_to_other_classes(guide, monkeypatch):
    from cdgcnet import Predictor, load_cfg
    from cdgcnet.engine.defaults import run, setup

    def arguments(*more):
        overrides = [str(x) for pair in TINY.items() for x in pair]
        opts = [*overrides, *more]
        return argparse.Namespace(config_file=guide, opts=opts, eval_only=False, resume=False)

    run(setup(arguments()))
    trained = torch.load("output/my/model_final.pth", weights_only=True)
    assert trained["class_names"] == ["background", "street lamp", "car"]

    other = Path(guide).read_text().replace("CLASSES: my/classes.txt", "CLASSES: [sky, lamp, car]")
    Path("other.yaml").write_text(other)
    args = arguments("MODEL.WEIGHTS", "output/my/model_final.pth", "OUTPUT_DIR", "output/other")
    args.config_file = "other.yaml"
    with pytest.raises(ValueError, match=r"class 0 is 'background' in the file and 'sky'"):
        run(setup(args))
    args.opts += ["MODEL.WEIGHTS_PARTIAL", "True"]
    run(setup(args))
    assert torch.load("output/other/model_final.pth", weights_only=True)["class_names"] == [
        *("sky", "lamp", "car")
    ]

    monkeypatch.delenv("DETECTRON2_DATASETS")
    cfg = load_cfg("output/my/config.yaml", ["MODEL.WEIGHTS", "output/my/model_final.pth"])
    metadata = Predictor(cfg).metadata
    assert metadata.stuff_classes == ["background", "street lamp", "car"]
    assert metadata.stuff_colors[0] == (90, 90, 90)


def test_the_guide_names_every_key():
    from cdgcnet.data.datasets.custom import OPTIONAL, REQUIRED

    text = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", text, re.M)) == {*REQUIRED, *OPTIONAL}
