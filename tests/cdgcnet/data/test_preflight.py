"""A broken dataset stops a run before its first iteration."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from cdgcnet.data.preflight import check_data, image_size
from cdgcnet.engine.defaults import setup


@pytest.fixture
def pair(tmp_path):
    """A 4 x 6 image with labels 0 to 2 and some ignored."""
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "i.png")
    labels = np.array([[0, 1, 2, 255, 0, 0]] * 4, np.uint8)
    Image.fromarray(labels).save(tmp_path / "l.png")
    return {"file_name": str(tmp_path / "i.png"), "sem_seg_file_name": str(tmp_path / "l.png")}


def check(*dicts, level="labels", classes=3):
    check_data("mine", dicts, classes, 255, level)


def test_sound_pairs_pass(pair):
    check(pair, pair)
    check(pair, level="all")
    check({"file_name": pair["file_name"]})  # a test set has no labels


def test_wrong_value_names_file_value_and_way_out(pair):
    with pytest.raises(ValueError) as caught:
        check(pair, pair, classes=2)
    message = str(caught.value)
    assert "dataset mine: 2 of 2 images" in message
    assert f"{pair['sem_seg_file_name']}: label value 2" in message
    assert "prepare_data.py audit mine" in message


def test_many_problems_are_cut_short(pair):
    with pytest.raises(ValueError) as caught:
        check(*[pair] * 7, classes=2)
    assert str(caught.value).count("label value 2") == 5 and "…" in str(caught.value)


def test_labels_of_another_size(pair):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(pair["sem_seg_file_name"])
    with pytest.raises(ValueError, match=r"l\.png: labels are 4 x 5, but the image is 4 x 6"):
        check(pair)


@pytest.mark.parametrize("key", ["file_name", "sem_seg_file_name"])
@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_files_that_are_no_images(pair, key, content):
    Path(pair[key]).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{Path(pair[key]).name}: not a readable"):
        check(pair)


def test_truncated_image_is_found_when_all_is_decoded(pair):
    path = Path(pair["file_name"])
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    check(pair)  # the header is whole
    with pytest.raises(ValueError, match=r"i\.png: not a readable image"):
        check(pair, level="all")


def test_none_looks_at_nothing():
    check({"file_name": "gone.png"}, level="none")


def test_missing_image(pair):
    Path(pair["file_name"]).unlink()
    with pytest.raises(ValueError, match=r"i\.png: no such image"):
        check(pair)


def test_size_of_a_photo_taken_sideways(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "phone.jpg", exif=exif)
    assert image_size(str(tmp_path / "phone.jpg")) == (8, 4)  # stored 4 high, 8 wide


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
