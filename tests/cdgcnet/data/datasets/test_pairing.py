"""Which label belongs to which image: suffixes, subfolders, split files, near misses."""

import unicodedata
from pathlib import Path

import pytest

from cdgcnet.data.datasets.pairing import PairingRule, read_split


def rule(tmp_path: Path, images: list[str], labels: list[str], **options) -> PairingRule:
    """A rule for empty files of these names below images/ and labels/."""
    for folder, names in (("images", images), ("labels", labels)):
        (tmp_path / folder).mkdir()
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return PairingRule(tmp_path / "images", tmp_path / "labels", **options)


def pairs(found: PairingRule) -> dict[str, str | None]:
    return found.find_labels(found.image_names())


def test_cityscapes_suffixes_and_subfolders(tmp_path):
    found = rule(
        tmp_path,
        ["ulm/a_leftImg8bit.png", "bonn/a_leftImg8bit.png", "ulm/a_other.png"],
        ["ulm/a_gtFine.png", "bonn/a_gtFine.png"],
        image_suffix="_leftImg8bit.png",
        label_suffix="_gtFine.png",
        recursive=True,
    )
    assert pairs(found) == {
        "bonn/a_leftImg8bit.png": "bonn/a_gtFine.png",
        "ulm/a_leftImg8bit.png": "ulm/a_gtFine.png",
    }
    assert found.stem("ulm/a_leftImg8bit.png") == "ulm/a"


def test_letter_case_and_unicode_form_may_differ(tmp_path):
    composed = unicodedata.normalize("NFC", "é.jpg")
    decomposed = unicodedata.normalize("NFD", "é.png")
    assert composed[0] != decomposed[0]
    found = rule(tmp_path, ["A.JPG", composed], ["a.png", decomposed])
    assert pairs(found) == {"A.JPG": "a.png", composed: decomposed}


def test_an_exact_name_comes_before_a_similar_one(tmp_path):
    found = rule(tmp_path, ["A.JPG"], ["A.png", "a.png"])
    assert pairs(found) == {"A.JPG": "A.png"}


def test_two_similar_labels_are_none(tmp_path):
    # Which of them would be meant?
    found = rule(tmp_path, ["Ab.jpg"], ["AB.png", "ab.png"])
    assert pairs(found) == {"Ab.jpg": None}


@pytest.mark.parametrize("names", [["a.jpg", "a.png"], ["A.jpg", "a.png"]])
def test_two_images_must_not_share_a_label(tmp_path, names):
    with pytest.raises(ValueError, match=f"holds {names[0]} and {names[1]}: two images of one"):
        rule(tmp_path, names, []).image_names()


def test_images_and_labels_in_one_folder(tmp_path):
    for name in ("a.png", "a_mask.png", "b.png", "b_mask.png"):
        (tmp_path / name).write_bytes(b"")
    found = PairingRule(tmp_path, tmp_path, ".png", "_mask.png")
    assert pairs(found) == {"a.png": "a_mask.png", "b.png": "b_mask.png"}


# ---------------------------------------------------------------- hints


@pytest.mark.parametrize(
    ("images", "labels", "hint"),
    [
        (
            ["a_leftImg8bit.png", "b_leftImg8bit.png"],
            ["a_gtFine.png", "b_gtFine.png"],
            "the names fit with IMAGE_SUFFIX: '_leftImg8bit.png', LABEL_SUFFIX: '_gtFine.png'",
        ),
        (
            ["a.jpg", "b.jpg"],
            ["a_mask.png", "b_mask.png"],
            "the names fit with IMAGE_SUFFIX: '.jpg', LABEL_SUFFIX: '_mask.png'",
        ),
        (["a.jpg", "b.jpg"], ["x/a.png", "b.png"], "there is x/a.png; RECURSIVE: True searches"),
        (["photo1.jpg", "b.jpg"], ["photo_1.png", "b.png"], "is it photo_1.png?"),
        (["a.jpg"], [], "holds no files"),
        (["a.jpg"], ["0815.png"], ""),
    ],
)
def test_a_near_miss_gets_a_hint(tmp_path, images, labels, hint):
    found = rule(tmp_path, images, labels)
    assert pairs(found)[images[0]] is None
    text = found.hint(images[0], images)
    assert hint in text and (hint or not text)


def test_a_label_of_another_image_is_no_hint(tmp_path):
    # Frames of a video, of which one has no label yet: no suffixes fit, and no label is free.
    frames = [f"0001TP_007{n}.jpg" for n in (110, 560, 590)]
    labels = [name.replace("jpg", "png") for name in frames[1:]]
    found = rule(tmp_path, frames, labels)
    assert found.hint(frames[0], frames, labels) == ""
    assert found.hint(frames[0], frames, labels[1:]) == f"is it {labels[0]}?"


def test_an_empty_folder_points_at_images_that_other_keys_would_find(tmp_path):
    with pytest.raises(ValueError, match=r"1 images are in subfolders, which RECURSIVE: True"):
        rule(tmp_path, ["x/a.jpg"], []).image_names()
    with pytest.raises(ValueError, match=r"no image that ends with '_x\.jpg'"):
        PairingRule(tmp_path / "images", None, "_x.jpg").image_names()


# ---------------------------------------------------------------- split files


def split(found: PairingRule, *lines: str) -> list[tuple[str, str | None]]:
    return list(read_split(lines, Path("train.txt"), found, found.image_names()))


def test_lines_name_an_image_with_or_without_suffix(tmp_path):
    found = rule(tmp_path, ["a.jpg", "B c.JPG"], [])
    assert split(found, "B c", "a.jpg") == [("B c.JPG", None), ("a.jpg", None)]
    assert split(found, "b c.jpg") == [("B c.JPG", None)]


def test_lines_name_pairs(tmp_path):
    found = rule(tmp_path, ["a.jpg", "x/b 1.jpg"], ["1.png", "x/2 b.png"])
    expected = [("a.jpg", "1.png"), ("x/b 1.jpg", "x/2 b.png")]
    assert split(found, "a 1.png", "x/b 1.jpg\tx/2 b.png") == expected
    assert split(found, "/a.jpg /1.png", "/x/b 1.jpg x/2 b.png") == expected


def test_pairs_need_not_follow_the_suffixes(tmp_path):
    found = rule(tmp_path, ["a_x.jpg", "other.jpg"], ["1.png"], image_suffix="_x.jpg")
    assert split(found, "other.jpg 1.png") == [("other.jpg", "1.png")]
    assert (found.stem("a_x.jpg"), found.stem("other.jpg")) == ("a", "other")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["z.jpg"], "names 'z.jpg', but .*such as 'a.jpg', or IMAGE LABEL"),
        (["a.jpg gone.png"], "names 'a.jpg gone.png'"),
        (["a.jpg", "a"], r"names a\.jpg twice \('a\.jpg', 'a'\)"),
        ([], "names no image"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, words):
    with pytest.raises(ValueError, match=rf"train\.txt {words}"):
        split(rule(tmp_path, ["a.jpg"], ["1.png"]), *lines)
