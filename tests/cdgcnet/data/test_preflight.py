"""A broken dataset stops a run before its first iteration."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.data.preflight import check_data, similar_datasets
from cdgcnet.engine.defaults import setup


@pytest.fixture
def pair(tmp_path):
    """A 4 x 6 image with labels 0 to 2 and some ignored."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "i.png")
    labels = np.array([[0, 1, 2, 255, 0, 0]] * 4, np.uint8)
    Image.fromarray(labels).save(tmp_path / "l.png")
    return {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}


@pytest.fixture
def check():
    """Run the check on samples given as DATASETS.TRAIN "mine" of classes a, b, c, …"""

    def run(*dicts, level="labels", classes=3, key="TRAIN", max_pixels=MAX_PIXELS):
        cfg = CfgNode(
            {
                "DATASETS": {"TRAIN": (), "TEST": (), "CHECK": level},
                "INPUT": {"MAX_PIXELS": max_pixels},
                "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": classes, "IGNORE_VALUE": 255}},
            }
        )
        cfg.DATASETS[key] = ("mine",)
        MetadataCatalog.get("mine").set(stuff_classes=list("abcdef"[:classes]))
        check_data(cfg, {"mine": dicts})

    yield run
    MetadataCatalog.remove("mine")


def relabel(pair, value):
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(pair["sem_seg_file_name"])
    return pair


def test_sound_pairs_pass(pair, check):
    check(pair, pair)
    check(pair, level="all")
    check({"file_name": pair["file_name"]}, key="TEST")  # a test set has no labels


def test_wrong_value_names_file_value_and_way_out(pair, check):
    with pytest.raises(ValueError) as caught:
        check(pair, pair, classes=2)
    message = str(caught.value)
    assert "dataset mine: 2 of 2 images" in message
    assert f"{pair['sem_seg_file_name']}: label value 2" in message
    assert "cdgcnet audit mine" in message


def test_many_problems_are_cut_short(pair, check):
    with pytest.raises(ValueError) as caught:
        check(*[pair] * 7, classes=2)
    assert str(caught.value).count("label value 2") == 5 and "…" in str(caught.value)


def test_labels_of_another_size(pair, check):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(pair["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"l\.png: labels are 4 x 5, but the image is 4 x 6"):
        check(pair)


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_files_that_are_no_images(pair, check, key, content):
    Path(pair[key]).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{Path(pair[key]).name}: not a readable"):
        check(pair)


def test_truncated_image_is_found_when_all_is_decoded(pair, check):
    path = Path(pair["file_name"])
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    check(pair)  # the header is whole
    with pytest.raises(ValueError, match=r"i\.png: not a readable image"):
        check(pair, level="all")


def test_none_opens_no_file(check):
    check({"file_name": "gone.png", "sem_seg_file_name": "gone.png"}, level="none")


@pytest.mark.parametrize("level", ["none", "labels"])
def test_training_images_without_labels_are_refused(pair, check, level):
    bare = {"file_name": pair["file_name"]}
    with pytest.raises(
        ValueError, match=r"mine: 2 of 3 images have no labels, the first is .*i.png"
    ):
        check(bare, pair, bare, level=level)
    with pytest.raises(ValueError, match="mine: 1 of 1 images have no labels"):
        check(bare, level=level)


@pytest.mark.parametrize("level", ["labels", "none"])
def test_an_empty_dataset_is_refused(check, level):
    with pytest.raises(ValueError, match="dataset mine: it is registered, but holds no images"):
        check(level=level)


def test_a_name_that_no_table_could_hold_is_refused(pair, check):
    with pytest.raises(ValueError, match=r"stra\\udcdfe.*expected a path in UTF-8"):
        check(pair | {"file_name": "stra\udcdfe.png"})


def test_missing_image(pair, check):
    Path(pair["file_name"]).unlink()
    with pytest.raises(ValueError, match=r"i\.png: no such image"):
        check(pair)


def test_size_limit_holds_for_headers(pair, check):
    check(pair, max_pixels=24)
    with pytest.raises(ValueError, match=r"i\.png: 4 x 6 .*INPUT\.MAX_PIXELS"):
        check(pair, max_pixels=23)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
@pytest.mark.parametrize("level", ["labels", "all"])
def test_labels_without_any_class_are_refused(pair, check, key, level):
    # Training would report loss 0, evaluation mIoU 100.
    with pytest.raises(ValueError, match=rf"DATASETS\.{key} mine: no pixel .*IDS and IGNORE"):
        check(relabel(pair, 255), key=key, level=level)


def test_a_single_class_cannot_be_trained(pair, check, caplog):
    relabel(pair, 1)
    with pytest.raises(ValueError, match=r"TRAIN mine: 'b' is the only class .*background"):
        check(pair)
    check(pair, key="TEST")  # few validation images may well show one class
    assert "TEST mine: 'b' is the only class that occurs" in caplog.text


def test_classes_that_never_occur_are_named(pair, check, caplog):
    check(pair, classes=5)
    assert "2 of 5 classes never occur (it cannot be learned): d, e" in caplog.text


def test_one_labeled_image_is_enough(pair, check, tmp_path):
    blank = {**pair, "sem_seg_file_name": str(tmp_path / "blank.png")}
    check(relabel(blank, 255), pair)


def test_an_unknown_dataset_is_answered_briefly(run_data):
    assert similar_datasets("cdgc_camvid_trian").startswith("Did you mean cdgc_camvid_train or ")
    parts = "cdgc_voc_{test,train,train_aug,trainval_aug,val}"
    assert similar_datasets("voc") == f"Did you mean one of {parts}?"
    listed = similar_datasets("typo")
    assert "cdgc_ade20k_{train,val}, cdgc_camvid_{dev,fit,test,train,val}, " in listed
    assert parts in listed
    assert "coco_2017" not in listed and len(listed) < 400  # none of Detectron2's own


def test_run_does_not_start_on_broken_data(run_data, run_yaml, tmp_path, clean_logging):
    label = DatasetCatalog.get("cdgc_cityscapes_train")[0]["sem_seg_file_name"]
    sound = Path(label).read_bytes()
    try:
        labels = np.array(Image.open(label))
        labels[0, 0] = 77
        Image.fromarray(labels).save(label)
        opts = ["OUTPUT_DIR", str(tmp_path / "run")]
        args = Namespace(config_file=str(run_yaml), eval_only=False, resume=False, opts=opts)
        with pytest.raises(ValueError, match=f"{Path(label).name}: label value 77"):
            setup(args)
        assert not (tmp_path / "run").exists()
    finally:
        Path(label).write_bytes(sound)
