"""cdgcnet audit: each planted defect is found and named; a sound set passes.

The toy set has 3 classes; its images are 4 x 6 noise, its labels hold 0, 1, 2 and 255.
"""

import html
import json
import os
import re
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet import register_all
from cdgcnet.cli.main import main
from cdgcnet.data.audit.audit import audit
from cdgcnet.data.audit.checks import Rules, digest_of, gray_values, inspect
from cdgcnet.data.audit.issues import IssueType
from cdgcnet.data.audit.report import choose, page
from cdgcnet.data.datasets.catalog import register
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.visualization.colors import color_map

COLORS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
NAMES = ["sky", "road", "tree"]


@pytest.fixture(autouse=True)
def _clean_catalogs():
    yield
    for name in DatasetCatalog.list():
        if name.startswith(("cdgc_toy", "toy_")):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    register_all()


class Toy:
    """A registered set whose files a test may spoil."""

    def __init__(self, folder, split, num=4, **metadata):
        self.name = f"cdgc_toy_{split}"
        self.dicts = []
        rng = np.random.default_rng(sum(split.encode()))
        for i in range(num):
            image, label = (folder / f"{split}_{i}.{end}" for end in ("jpg.png", "png"))
            self.save(image, rng.integers(0, 256, (4, 6, 3)))
            self.save(label, [[0, 0, 1, 1, 2, 255]] * 4)
            self.dicts.append(
                {
                    "file_name": str(image),
                    "sem_seg_file_name": str(label),
                    "image_id": f"{split}_{i}",
                }
            )
        metadata = {"classes": NAMES, "colors": COLORS, **metadata}
        register(self.name, lambda: list(self.dicts), **metadata)

    def save(self, path, pixels, palette=None):
        picture = Image.fromarray(np.asarray(pixels).astype(np.uint8))
        if palette is not None:
            picture.putpalette(palette)
        picture.save(path)

    def label(self, i):
        return self.dicts[i]["sem_seg_file_name"]

    def image(self, i):
        return self.dicts[i]["file_name"]


@pytest.fixture
def toy(tmp_path):
    return Toy(tmp_path, "train")


@pytest.fixture
def call(capsys):
    """The command; returns its exit code and both outputs."""

    def run(*argv):
        code = main(["audit", *map(str, argv), "--workers", "2"])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def types(report):
    return [issue.type for issue in report.issues]


# ---------------------------------------------------------------- a sound set


def test_a_misspelled_name_gets_a_suggestion(toy, call):
    done = call("cdgc_toy_trian")
    assert done.code == 1
    assert f"'cdgc_toy_trian' is not registered. Did you mean {toy.name}" in done.err
    assert "--config-file" in done.err  # where own data comes from


def test_a_sound_set_passes(toy, call):
    done = call(toy.name)
    assert done.code == 0
    # 4 images of 24 pixels; 4 of 24 = 16.7 % are ignored.
    assert "4 images, 3 classes, 0.0 million pixels, 16.7 % of them ignored" in done.out
    assert "result: 0 errors, 0 warnings" in done.out
    assert "error:" not in done.out and "warning:" not in done.out


def test_class_table_worked_by_hand(toy):
    toy.save(toy.label(0), [[0, 0, 0, 0, 0, 0]] * 4)
    report = audit(toy.name)
    # Three labels of 8 / 8 / 4 pixels and one of 24 / 0 / 0: 48, 24, 12 of 84.
    assert report.pixels.tolist() == [48, 24, 12]
    np.testing.assert_allclose(report.percent, [400 / 7, 200 / 7, 100 / 7])
    assert report.images.tolist() == [4, 3, 3]


@given(st.integers(1, 20), st.integers(0, 2**32 - 1), st.booleans())
def test_frequencies_are_those_of_bincount(tmp_path_factory, num_classes, seed, mapped):
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (5, 7)).astype(np.uint8)
    # A random table to classes and 255; without one, the labels themselves are such.
    lut = rng.choice([*range(num_classes), 255], 256).astype(np.uint8)
    labels = lut[raw]
    path = tmp_path_factory.mktemp("law") / "label.png"
    Image.fromarray(raw if mapped else labels).save(path)
    sample = inspect(
        {
            "file_name": str(path),
            "sem_seg_file_name": str(path),
            "sem_seg_lut": lut.tobytes() if mapped else None,
        },
        Rules(LabelSpec(num_classes), frozenset(), labeled=True),
    )
    expected = np.bincount(labels.ravel(), minlength=256)
    np.testing.assert_array_equal(sample.counts, expected[:num_classes])
    assert sample.ignored == expected[255] and sample.total == 35
    assert all(issue.type == IssueType.ALL_IGNORED for issue in sample.issues)


def test_the_spread_of_ignored_pixels(toy, call):
    for i, ignored in enumerate((0, 6, 12)):
        toy.save(toy.label(i), np.r_[np.full(ignored, 255), np.zeros(24 - ignored)].reshape(4, 6))
    # 0, 6, 12 and 4 of 24 pixels: the median lies between 16.7 and 25 %.
    line = f"ignored pixels per image: median 20.8 %, most 50.0 % in {toy.label(2)}"
    assert line in call(toy.name).out and line in page(audit(toy.name))


def test_a_set_of_detectron2_without_colors(toy):
    metadata = MetadataCatalog.get(toy.name)
    del metadata.stuff_colors
    report = audit(toy.name)
    assert not report.issues and len(set(report.colors)) == 3


def test_a_split_without_labels_has_its_images_checked(toy, call):
    for d in toy.dicts:
        del d["sem_seg_file_name"]
    done = call(toy.name)
    assert done.code == 0 and "4 images without labels" in done.out
    assert "never occurs" not in done.out and "% of labeled" not in done.out
    with open(toy.image(2), "wb") as file:
        file.write(b"broken")
    assert call(toy.name).code == 1


def test_number_of_workers_changes_nothing(toy):
    toy.save(toy.label(1), np.full((4, 6), 9))
    assert audit(toy.name, workers=1).issues == audit(toy.name, workers=4).issues


# ---------------------------------------------------------------- errors


def spoil_image(toy):
    with open(toy.image(1), "wb") as file:
        file.write(b"broken")
    return toy.image(1), "unreadable image"


def truncate_image(toy):
    with open(toy.image(1), "rb") as file:
        data = file.read()
    with open(toy.image(1), "wb") as file:
        file.write(data[: len(data) // 2])
    return toy.image(1), "unreadable image"


def forget_image(toy):
    toy.dicts[1]["file_name"] += ".gone"
    return toy.image(1), "there is no such file"


def spoil_label(toy):
    with open(toy.label(1), "wb") as file:
        file.write(b"broken")
    return toy.label(1), "unreadable label"


def forget_label(toy):
    toy.dicts[1]["sem_seg_file_name"] += ".gone"
    return toy.label(1), "there is no such file"


def drop_label(toy):
    del toy.dicts[1]["sem_seg_file_name"]
    return toy.image(1), "image without a label"


def color_label(toy):
    toy.save(toy.label(1), np.zeros((4, 6, 3)))
    return toy.label(1), "label with color or alpha channels"


def shrink_label(toy):
    toy.save(toy.label(1), np.zeros((2, 3)))
    return toy.label(1), "label 2 x 3, image 4 x 6 (height x width)"


def foreign_value(toy):
    toy.save(toy.label(1), [[0, 1, 2, 3, 3, 7]] * 4)
    # Values 3 and 7 in 3 of 6 columns.
    return toy.label(1), "3, 7 in 12 pixels (50.0 %); expected 0 to 2 or 255"


def gray_palette(toy):
    # 200 red has the brightness 0.299 * 200 = 59.8, green 117.4, blue 22.8.
    toy.save(toy.label(1), [[60, 60, 117, 117, 23, 0]] * 4)
    return toy.label(1), "palette PNG saved as gray"


def gray_voc_palette(toy):
    # VOC's aeroplane (128, 0, 0) has the brightness 38, its void border (224, 224, 192) 220.
    toy.save(toy.label(1), [[0, 0, 38, 38, 220, 220]] * 4)
    return toy.label(1), "palette PNG saved as gray"


ERRORS = (
    spoil_image,
    truncate_image,
    forget_image,
    spoil_label,
    forget_label,
    drop_label,
    color_label,
    shrink_label,
    foreign_value,
    gray_palette,
    gray_voc_palette,
)


@pytest.mark.parametrize("spoil", ERRORS)
def test_a_planted_error_is_found_and_named(toy, call, spoil):
    file, words = spoil(toy)
    done = call(toy.name)
    assert done.code == 1
    assert file in done.out and words in done.out
    assert "result: 1 error, 0 warnings" in done.out  # nothing else is blamed


def test_errors_come_first_and_long_lists_are_cut(tmp_path, call):
    toy = Toy(tmp_path, "train", num=14)
    for i in range(13):
        toy.save(toy.label(i), np.full((4, 6), 9))
    toy.save(toy.label(13), np.zeros((4, 6)))
    done = call(toy.name)
    assert done.out.index("error: label value out of range (13)") < done.out.index("warning:")
    assert toy.label(9) in done.out and toy.label(10) not in done.out
    assert "… and 3 more" in done.out


@pytest.mark.parametrize("palette", [None, [1, 2, 3] * 3])
def test_no_damaged_byte_ends_the_audit(toy, palette):
    # Pillow and OpenCV meet broken headers, chunks and checksums with errors of several types.
    label = Path(toy.label(1))
    toy.save(label, [[0, 0, 1, 1, 2, 255]] * 4, palette=palette)
    data = label.read_bytes()
    rules = Rules(LabelSpec(3), frozenset(), labeled=True)
    found = set()
    for i in range(len(data)):
        label.write_bytes(data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :])
        found.update(issue.type for issue in inspect(toy.dicts[1], rules).issues)
    assert IssueType.UNREADABLE_LABEL in found


def test_gray_needs_a_grayscale_file_and_all_values(toy):
    toy.save(toy.label(0), [[60, 60, 117, 117, 23, 9]] * 4)  # 9 is the gray of no color
    toy.save(toy.label(1), [[60, 60, 117, 117, 23, 0]] * 4, palette=list(range(256)) * 3)
    assert types(audit(toy.name)) == [IssueType.UNKNOWN_VALUE, IssueType.UNKNOWN_VALUE]


def test_gray_values_are_pillows():
    # (299 R + 587 G + 114 B) / 1000: 38.27 for VOC's aeroplane, 75.1 for its bicycle.
    assert gray_values([(128, 0, 0), (0, 128, 0), (0, 0, 0)]) == {38, 75, 0}


def test_the_table_of_the_dict_is_applied(toy):
    toy.save(toy.label(0), [[7, 7, 8, 8, 9, 9]] * 4)
    lut = bytearray([255] * 256)
    lut[7], lut[8], lut[9] = 0, 1, 3  # 3 is not a class
    toy.dicts[0]["sem_seg_lut"] = bytes(lut)
    report = audit(toy.name)
    assert types(report) == [IssueType.UNKNOWN_VALUE]
    assert report.issues[0].details.startswith("9 in 8 pixels")  # the value in the file
    assert report.samples[0].counts.tolist() == [8, 8, 0]


# ---------------------------------------------------------------- duplicates


def copy(source, target):
    with open(source, "rb") as file:
        data = file.read()
    with open(target, "wb") as file:
        file.write(data)


def test_one_image_in_train_and_val_is_an_error(toy, tmp_path, call):
    val = Toy(tmp_path, "val")
    copy(val.image(2), toy.image(0))
    for one, other in ((toy, val), (val, toy)):
        done = call(one.name)
        assert done.code == 1 and "image in two datasets" in done.out
        assert toy.image(0) in done.out and val.image(2) in done.out
        assert f"compared with {other.name}: 4 images" in done.out


def test_augmented_lists_are_compared_too(tmp_path):
    train, val = Toy(tmp_path, "train_aug"), Toy(tmp_path, "val")
    copy(val.image(2), train.image(0))
    assert types(audit(train.name)) == types(audit(val.name)) == [IssueType.SHARED_IMAGE]


def test_against_replaces_the_counterpart(toy, tmp_path, call):
    val, extra = Toy(tmp_path, "val"), Toy(tmp_path, "holiday")
    copy(val.image(2), toy.image(0))
    copy(extra.image(3), toy.image(1))
    done = call(toy.name, "--against", extra.name)
    assert done.code == 1
    assert extra.image(3) in done.out and val.image(2) not in done.out
    assert "result: 2 errors" in call(toy.name, "--against", extra.name, val.name).out


def test_the_same_name_alone_in_two_sets_is_a_warning(toy, tmp_path, call):
    # Folders of one's own often number train and val alike.
    val = Toy(tmp_path, "val")
    val.dicts[2]["image_id"] = "train_1"
    done = call(toy.name)
    assert done.code == 0 and "same name in two datasets" in done.out
    assert toy.image(1) in done.out and val.image(2) in done.out


def test_twins_within_a_set_are_warnings(toy, call):
    copy(toy.image(0), toy.image(2))
    toy.dicts[3]["image_id"] = "train_1"
    done = call(toy.name)
    assert done.code == 0 and "2 warnings" in done.out
    assert f"{toy.image(2)}: the same bytes as {toy.image(0)}" in done.out
    assert f"{toy.image(3)}: image_id 'train_1', as {toy.image(1)}" in done.out


def test_unreadable_images_are_no_twins(toy, tmp_path):
    val = Toy(tmp_path, "val")
    for toy_set in (toy, val):
        for i in (0, 1):
            toy_set.dicts[i]["file_name"] += ".gone"
    assert types(audit(toy.name)) == [IssueType.UNREADABLE_IMAGE, IssueType.UNREADABLE_IMAGE]


def test_pipes_and_devices_are_reported_and_not_read(toy, tmp_path):
    # A pipe would block and /dev/zero never ends. Both sets have some, of the same size 0, so the
    # comparison of the sets comes across them too.
    val = Toy(tmp_path, "val")
    for toy_set in (toy, val):
        for i in (0, 1):
            Path(toy_set.image(i)).unlink()
        os.mkfifo(toy_set.image(0))
        Path(toy_set.image(1)).symlink_to("/dev/zero")
    issues = audit(toy.name).issues
    assert [issue.type for issue in issues] == [IssueType.UNREADABLE_IMAGE] * 2
    assert all("not a regular file" in issue.details for issue in issues)


def test_only_files_of_equal_size_are_read_in_the_other_set(toy, tmp_path, monkeypatch):
    val = Toy(tmp_path, "val")
    for i in range(3):
        toy.save(val.image(i), np.zeros((4, 6, 3)))  # compresses better than noise
    copy(toy.image(0), val.image(3))
    read = []
    monkeypatch.setattr(
        "cdgcnet.data.audit.audit.digest_of", lambda d: read.append(d["file_name"]) or digest_of(d)
    )
    assert types(audit(toy.name)) == [IssueType.SHARED_IMAGE]
    assert read == [val.image(3)]


@pytest.mark.parametrize("error", [FileNotFoundError, ValueError, AssertionError])
def test_a_counterpart_that_is_not_there_or_broken_is_noted(toy, call, error):
    def missing():
        raise error("no folder\nlayout")

    register("cdgc_toy_val", missing, classes=NAMES, colors=COLORS)
    done = call(toy.name)
    assert done.code == 0 and "layout" not in done.out
    note = next(line for line in done.out.splitlines() if "not compared with cdgc_toy_val" in line)
    assert note.endswith("no folder")
    # A set that was asked for must be there.
    done = call(toy.name, "--against", "cdgc_toy_val")
    assert done.code == 1 and "no folder" in done.err


# ---------------------------------------------------------------- warnings


def test_all_pixels_ignored(toy, call):
    toy.save(toy.label(1), np.full((4, 6), 255))
    done = call(toy.name)
    assert done.code == 0
    assert "warning: all pixels ignored (1)" in done.out and toy.label(1) in done.out


def test_a_dataset_without_any_class_is_an_error(toy, call):
    for i in range(4):
        toy.save(toy.label(i), [[255] * 6] * 4)
    done = call(toy.name)
    assert done.code == 1 and "error: no pixel has a class (1)" in done.out
    assert types(audit(toy.name)) == [IssueType.ALL_IGNORED] * 4 + [IssueType.NO_CLASS]


def test_a_single_class_is_an_error(toy):
    for i in range(4):
        toy.save(toy.label(i), [[1] * 6] * 4)
    report = audit(toy.name)
    assert types(report) == [IssueType.SINGLE_CLASS] + [IssueType.ABSENT_CLASS] * 2
    assert report.issues[0].subject == "1 road" and report.suggested_weights() == []


def test_a_label_with_alpha_is_distinguished_from_a_damaged_one(toy):
    Image.new("LA", (6, 4)).save(toy.label(0))
    Path(toy.label(1)).write_bytes(b"")
    report = audit(toy.name)
    assert types(report) == [IssueType.COLOR_LABEL, IssueType.UNREADABLE_LABEL]
    assert "a grayscale image with an alpha channel (mode LA)" in report.issues[0].details


def test_weights_can_be_pasted(toy, call):
    lines = call(toy.name).out.splitlines()
    line = next(line for line in lines if line.endswith("# inverse frequency"))
    # 8, 8 and 4 of 20 pixels: 2.5, 2.5, 5 over their mean 10 / 3.
    assert line.strip() == "CLASS_WEIGHTS: [0.75, 0.75, 1.5]  # inverse frequency"


def test_a_class_that_never_occurs(toy, call):
    for i in range(4):
        toy.save(toy.label(i), [[0, 0, 0, 2, 2, 255]] * 4)
    done = call(toy.name)
    assert done.code == 0
    assert "class never occurs (1)" in done.out and "  1 road" in done.out


def test_palettes_that_differ(toy):
    palette = [v for color in COLORS for v in color] + [0] * 759
    other = list(palette)
    other[3:6] = 9, 9, 9  # of id 1
    for i in range(4):
        pixels = [[0, 0, 1, 1, 2, 255]] * 4
        toy.save(toy.label(i), pixels, palette=other if i == 2 else palette)
    report = audit(toy.name)
    assert types(report) == [IssueType.PALETTE_MISMATCH]
    assert report.issues[0].subject == toy.label(2)
    assert report.issues[0].details == (
        "id 1 has the color (9, 9, 9), but (0, 200, 0) in 3 of 4 files"
    )


def test_colors_of_ids_that_do_not_occur_or_are_ignored_may_differ(toy):
    palette = [v for color in COLORS for v in color] + [0] * 759
    other = list(palette)
    other[30:33] = 9, 9, 9  # of id 10, which no pixel has
    other[765:768] = 224, 224, 192  # of 255
    for i in range(4):
        pixels = [[0, 0, 1, 1, 2, 255]] * 4
        toy.save(toy.label(i), pixels, palette=other if i == 2 else palette)
    assert types(audit(toy.name)) == []


def test_an_unofficial_count(tmp_path, call):
    toy = Toy(tmp_path, "train", official_count=5)
    done = call(toy.name)
    assert done.code == 0 and f"{toy.name}: 4, officially 5" in done.out
    toy.dicts.append(toy.dicts[0] | {"image_id": "x"})
    assert "officially" not in call(toy.name).out


# ---------------------------------------------------------------- refusals


def refused(done):
    assert done.code == 1 and done.err.startswith("cdgcnet audit: error: ")
    return done.err


def test_wrong_sets_are_refused(toy, tmp_path, call):
    error = refused(call("cdgc_nothing"))
    assert "cdgc_nothing" in error and toy.name in error
    error = refused(call("cdgc_camvid_train", "--root", tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in error
    assert "cdgc_nothing" in refused(call(toy.name, "--against", "cdgc_nothing"))
    assert "shares all" in refused(call(toy.name, "--against", toy.name))
    assert "not a dataset for semantic" in refused(call("coco_2017_train"))
    assert "no.yaml" in refused(call(toy.name, "--config-file", "no.yaml"))
    toy.dicts.clear()
    assert "has no images" in refused(call(toy.name))


def test_own_data_of_a_config(toy, tmp_path, call):
    for kind, file in (("images", toy.image(0)), ("labels", toy.label(0))):
        (tmp_path / kind).mkdir()
        copy(file, tmp_path / kind / "a.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    entry = {
        "NAME": "toy_own",
        "IMAGES": str(tmp_path / "images"),
        "LABELS": str(tmp_path / "labels"),
        "CLASSES": str(tmp_path / "classes.txt"),
    }
    config = tmp_path / "own.yaml"
    config.write_text(f"DATASETS: {{FOLDERS: [{json.dumps(entry)}]}}\nVERSION: 2\n")
    done = call("toy_own", "--config-file", config)
    assert done.code == 0 and "toy_own: 1 images, 3 classes" in done.out


# ---------------------------------------------------------------- the page


def test_the_page_escapes_names_and_needs_no_other_file(tmp_path, call):
    folder = tmp_path / "<b>&amp;"
    folder.mkdir()
    names = ["<script>", "a & b", "'quoted'"]
    toy = Toy(folder, "train", classes=names)
    toy.save(toy.label(1), np.full((4, 6), 255))
    target = tmp_path / "page.html"
    done = call(toy.name, "--html", target)
    assert done.code == 0 and f"page: {target}" in done.out
    text = target.read_text(encoding="utf-8")
    assert "<script" not in text and "<b>&amp;" not in text
    for name in names:
        assert html.escape(name) in text
    assert html.escape(toy.label(1)) in text  # of the warning
    assert text.count("data:image/jpeg;base64,") == 4
    assert "http" not in text and "src=" in text
    assert "16.7 % ignored" in text and "rgb(200,0,0)" in text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_fits_into_the_window(tmp_path, call, width):
    # A line of weights for 60 classes is wider than any window.
    names = [f"class of the number {i}" for i in range(60)]
    toy = Toy(tmp_path, "train", classes=names, colors=[(i, i, i) for i in range(60)])
    toy.save(toy.label(0), np.arange(24).reshape(4, 6))
    target = tmp_path / "page.html"
    assert call(toy.name, "--html", target).code == 0
    assert "CLASS_WEIGHTS" in target.read_text(encoding="utf-8")
    browser = Browser(tmp_path / "profile", width)
    try:
        browser.open(target.as_uri())
        boxes = "[document.documentElement, document.querySelector('pre')]"
        hidden = f"{boxes}.map((box) => box.scrollWidth - box.clientWidth)"
        assert browser.evaluate(hidden) == [0, 0]
        colors = []
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            colors.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert colors == ["rgb(255, 255, 255)", "rgb(22, 24, 28)"]
    finally:
        browser.close()


def test_an_existing_page_is_kept(toy, tmp_path, call):
    target = tmp_path / "page.html"
    target.write_text("mine")
    error = refused(call(toy.name, "--html", target))
    assert str(target) in error and "--overwrite" in error and target.read_text() == "mine"
    assert call(toy.name, "--html", target, "--overwrite").code == 0
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "is a folder" in refused(call(toy.name, "--html", tmp_path, "--overwrite"))
    assert not list(tmp_path.glob("*.part*"))


def test_the_page_of_a_set_without_a_sound_pair(toy):
    for i in range(4):
        toy.save(toy.label(i), np.full((4, 6), 9))
    report = audit(toy.name)
    assert choose(report) == [] and "5 errors" in page(report)


def test_the_page_of_images_without_labels(toy):
    for d in toy.dicts:
        del d["sem_seg_file_name"]
    text = page(audit(toy.name))
    assert text.count("<img") == 4 and "<table" not in text and "ignored" not in text


def test_a_picture_is_the_image_beside_its_overlay(toy):
    toy.save(toy.image(0), np.full((4, 6, 3), 100))
    toy.save(toy.label(0), np.full((4, 6), 1))
    encoded = re.findall('base64,([^"]+)"', page(audit(toy.name)))
    pictures = [np.asarray(Image.open(BytesIO(b64decode(e)))).astype(int) for e in encoded]
    assert all(p.shape == (4, 12, 3) for p in pictures)
    # 0.45 * 100 + 0.55 * (0, 200, 0) = (45, 155, 45); JPEG is not exact.
    differences = [
        max(abs(p[:, :4] - 100).max(), abs(p[:, 8:] - (45, 155, 45)).max()) for p in pictures
    ]
    assert sum(d < 40 for d in differences) == 1


def test_a_page_lists_no_more_files_than_can_be_read(toy, monkeypatch):
    for i in range(4):
        toy.save(toy.label(i), np.full((4, 6), 9))
    monkeypatch.setattr("cdgcnet.data.audit.report._LISTED", 3)
    text = page(audit(toy.name))
    assert toy.label(2) in text and toy.label(3) not in text and "<li>… and 1 more</li>" in text


def test_pictures_are_chosen_for_a_reason(tmp_path):
    toy = Toy(tmp_path, "train", num=30)
    for i in range(30):
        toy.save(toy.label(i), np.zeros((4, 6)))
    toy.save(toy.label(7), [[0, 0, 0, 0, 0, 2]] * 4)  # the rarest class
    toy.save(toy.label(8), [[0, 0, 0, 0, 255, 255]] * 4)
    toy.save(toy.label(9), [[0, 0, 0, 255, 255, 255]] * 4)
    report = audit(toy.name)
    chosen = choose(report)
    reasons = {s.image: reason for s, reason in chosen}
    assert len(chosen) == len(reasons) == 12
    assert [s.image for s, _ in chosen[:2]] == [toy.image(9), toy.image(8)]
    assert reasons[toy.image(9)] == reasons[toy.image(8)] == "most ignored"
    assert reasons[toy.image(7)] == "rare class tree"
    assert [s.image for s, _ in choose(report)] == [s.image for s, _ in chosen]


def test_ignored_pixels_are_striped():
    labels = np.full((32, 32), 255, np.uint8)
    labels[:, :16] = 1
    rgb = color_map(labels, COLORS, striped=True)
    assert (rgb[:, :16] == COLORS[1]).all()
    assert set(np.unique(rgb[:, 16:])) == {90, 255}
