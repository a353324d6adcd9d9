"""``cdgcnet prepare import``: annotation files become labels that a config can train on."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdgcnet.cli.main import main
from cdgcnet.data.decoding import check_size
from cdgcnet.data.label_io import read_labels

SQUARE = [[1, 1], [3, 1], [3, 3], [1, 3]]


@pytest.fixture
def images(tmp_path) -> Path:
    """x/a.jpg and b.png, 6 x 8 pixels."""
    (tmp_path / "images" / "x").mkdir(parents=True)
    for name in ("x/a.jpg", "b.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / name)
    return tmp_path / "images"


@pytest.fixture
def run(tmp_path, images, capsys):
    """Run the command; returns exit code and what was printed."""

    def call(file_format: str, annotations: Path, *options: str) -> tuple[int, str]:
        code = main(
            ["prepare", "import", file_format, "--annotations", str(annotations), "--images",
             str(images), "--output", str(tmp_path / "out"), "--workers", "0", *options]
        )  # fmt: skip
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return call


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def labels(tmp_path, stem: str) -> np.ndarray:
    return read_labels(tmp_path / "out" / "labels" / f"{stem}.png")


def classes(tmp_path) -> list[str]:
    lines = (tmp_path / "out" / "classes.txt").read_text().splitlines()
    return [line.rsplit(" ", 3)[0] for line in lines]


# ---------------------------------------------------------------- COCO


def coco(**changes) -> dict:
    cat, dog = [[0, 0, 8, 0, 8, 6, 0, 6]], [[1, 1, 4, 1, 4, 4, 1, 4]]
    return {
        "images": [
            {"id": 5, "file_name": "x/a.jpg", "height": 6, "width": 8},
            {"id": 6, "file_name": "elsewhere/b.png", "height": 6, "width": 8},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 18, "segmentation": dog, "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 17, "segmentation": cat, "iscrowd": 0},
        ],
        **changes,
    }


def test_coco(tmp_path, run):
    code, printed = run("coco-json", write(tmp_path / "i.json", coco()))
    assert code == 0 and "the smaller one shows" in printed
    assert classes(tmp_path) == ["background", "cat", "dog"]  # by id
    expected = np.full((6, 8), 1)
    expected[1:4, 1:4] = 2  # the dog is smaller than the cat that comes after it
    np.testing.assert_array_equal(labels(tmp_path, "x/a"), expected)
    assert (labels(tmp_path, "b") == 0).all()  # an image without annotations is background
    split = (tmp_path / "out" / "split.txt").read_text()
    assert split == "x/a.jpg x/a.png\nb.png b.png\n"


def test_the_printed_entry_loads(tmp_path, run, images):
    from detectron2.config import CfgNode

    from cdgcnet.data.datasets.custom import KEY, _parse

    _, printed = run("coco-json", write(tmp_path / "i.json", coco()))
    entry = CfgNode.load_cfg(printed[printed.index("DATASETS:") :]).DATASETS.FOLDERS[0]
    dicts = _parse(dict(entry), 0, tmp_path).load()
    assert KEY == "DATASETS.FOLDERS" and len(dicts) == 2
    assert dicts[0]["file_name"] == str(images / "x" / "a.jpg")
    assert read_labels(dicts[0]["sem_seg_file_name"]).max() == 2


@pytest.mark.parametrize(("option", "crowd"), [("class", 1), ("ignore", 255)])
def test_crowds_lie_below_single_objects(tmp_path, run, option, crowd):
    data = coco()
    whole = {"counts": [0, 48], "size": [6, 8]}
    data["annotations"][1] |= {"iscrowd": 1, "segmentation": whole}
    run("coco-json", write(tmp_path / "i.json", data), "--crowd", option, "--overlaps", "later")
    found = labels(tmp_path, "x/a")
    assert found[0, 0] == crowd and found[2, 2] == 2


def test_other_overlaps_and_ignored_background(tmp_path, run):
    options = ("--overlaps", "later", "--unlabeled", "(ignore)")
    run("coco-json", write(tmp_path / "i.json", coco()), *options)
    assert classes(tmp_path) == ["cat", "dog"]
    assert (labels(tmp_path, "x/a") == 0).all() and (labels(tmp_path, "b") == 255).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": [{"id": 1, "file_name": "z.jpg", "height": 6, "width": 8}]}, "z.jpg"),
        ({"categories": []}, "annotation 1: missing or unknown 18"),
        ({"annotations": [{"id": 3, "image_id": 5, "category_id": 17}]}, "unknown 'segmentation'"),
        (
            {"annotations": [{"id": 3, "image_id": 5, "category_id": 17, "segmentation": []}]},
            "annotation 3 has no segmentation; boxes alone",
        ),
        ({"annotations": {}}, "expected a COCO file with the lists"),
    ],
)
def test_bad_coco_files_write_nothing(tmp_path, run, changes, words):
    code, printed = run("coco-json", write(tmp_path / "i.json", coco(**changes)))
    assert code == 1 and words in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_wrong_size_fails_one_image_only(tmp_path, run):
    data = coco()
    data["images"][1]["height"] = 7
    code, printed = run("coco-json", write(tmp_path / "i.json", data))
    assert code == 1 and "b.png: it is 6 x 8, but the annotations are for 7 x 8" in printed
    assert labels(tmp_path, "x/a").max() == 2


# ---------------------------------------------------------------- names


def test_unknown_names_stop_the_import_and_a_mapping_settles_them(tmp_path, run):
    source = write(tmp_path / "i.json", coco())
    listed = write(tmp_path / "classes.txt", "background\ncat 1 2 3\n")
    code, printed = run("coco-json", source, "--classes", str(listed))
    assert code == 1 and "dog -> CLASS        (1 shapes)" in printed
    assert not (tmp_path / "out").exists()
    for target, expected in (("cat", 1), ("(ignore)", 255), ("(skip)", 1)):
        mapping = write(tmp_path / "mapping.txt", f"dog -> {target}\n")
        options = ("--classes", str(listed), "--mapping", str(mapping), "--overwrite")
        assert run("coco-json", source, *options)[0] == 0
        assert labels(tmp_path, "x/a")[2, 2] == expected
    mapping = write(tmp_path / "mapping.txt", "dog -> cow\n")
    code, printed = run("coco-json", source, "--classes", str(listed), "--mapping", str(mapping))
    assert code == 1 and "'dog' -> 'cow', which is not a class" in printed


@pytest.mark.parametrize("line", ["dog", "-> cat", "dog ->", "dog -> cat\ndog -> cat"])
def test_bad_mapping_files(tmp_path, run, line):
    mapping = write(tmp_path / "mapping.txt", line)
    code, printed = run("coco-json", write(tmp_path / "i.json", coco()), "--mapping", str(mapping))
    assert code == 1 and "mapping.txt: " in printed


# ---------------------------------------------------------------- resuming


def test_an_interrupted_import_continues_and_another_one_does_not_mix(tmp_path, run):
    source = write(tmp_path / "i.json", coco())
    run("coco-json", source)
    (tmp_path / "out" / "labels" / "b.png").unlink()
    assert "1 labels made, 1 were there" in run("coco-json", source)[1]
    code, printed = run("coco-json", source, "--overlaps", "later")
    assert code == 1 and "an import that differs in overlaps" in printed
    assert labels(tmp_path, "x/a")[2, 2] == 2
    code, _ = run("coco-json", source, "--overlaps", "later", "--overwrite")
    assert code == 0 and labels(tmp_path, "x/a")[2, 2] == 1


# ---------------------------------------------------------------- other formats


def test_labelme(tmp_path, run):
    pixels = np.zeros((2, 3), np.uint8)
    pixels[0, 1:] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    shapes = [
        {"label": "road", "points": SQUARE, "shape_type": "polygon"},
        {"label": "car", "points": [[2, 2], [7, 4]], "shape_type": "rectangle"},
        {"label": "sign", "points": [[5, 0], [7, 1]], "shape_type": "mask", "mask": mask},
    ]
    data = {"shapes": shapes, "imageHeight": 6, "imageWidth": 8}
    write(tmp_path / "json" / "x" / "a.json", data)
    code, printed = run("labelme", tmp_path / "json")
    assert code == 0, printed
    assert classes(tmp_path) == ["background", "car", "road", "sign"]
    expected = [
        [0, 0, 0, 0, 0, 0, 3, 3],
        [0, 2, 2, 2, 0, 0, 0, 0],
        [0, 2, 1, 1, 1, 1, 1, 1],
        [0, 2, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert labels(tmp_path, "x/a").tolist() == expected
    # b.png has no file: it is not labeled, so it is not in the split.
    assert (tmp_path / "out" / "split.txt").read_text() == "x/a.jpg x/a.png\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not a readable JSON file"),
        ([1], "not a file of this format"),
        ({"shapes": [{"points": SQUARE}]}, "not a file of this format (KeyError('label'))"),
        (
            {"shapes": [{"label": "a", "points": [[0, 0], [1, 1]], "shape_type": "line"}]},
            "a shape is a line with 2 points",
        ),
    ],
)
def test_bad_labelme_files(tmp_path, run, content, words):
    path = write(tmp_path / "json" / "b.json", content)
    code, printed = run("labelme", tmp_path / "json")
    assert code == 1 and f"{path}: " in printed and words in printed


@pytest.mark.parametrize(
    ("file_format", "name", "words"),
    [
        ("coco-json", "i.json", "not a readable JSON file (not a regular file)"),
        ("cvat", "a.xml", "not a readable CVAT file (not a regular file)"),
        ("labelme", "json/b.json", "not a readable JSON file (not a regular file)"),
        # No annotation by its name, but the import's record covers the whole folder.
        ("labelme", "json/notes", "not a readable annotation file (not a regular file)"),
    ],
)
def test_a_pipe_among_the_annotations_is_named(tmp_path, run, file_format, name, words):
    # Without the check, reading it would wait for a writer forever.
    path = tmp_path / name
    shapes = [{"label": "road", "points": SQUARE}]
    write(tmp_path / "json" / "x" / "a.json", {"shapes": shapes})
    os.mkfifo(path)
    code, printed = run(file_format, tmp_path / "json" if "/" in name else path)
    assert code == 1 and f"{path}: {words}" in printed


def test_annotations_without_an_image_are_said(tmp_path, run):
    write(tmp_path / "json" / "c.json", {"shapes": []})
    code, printed = run("labelme", tmp_path / "json")
    assert code == 1 and "1 files have no image: c.json" in printed


def test_cityscapes_polygons(tmp_path, run, images):
    (images / "b.png").rename(images / "b_leftImg8bit.png")
    objects = [
        {"label": "road", "polygon": [[-5, -5], [20, -5], [20, 3], [-5, 3]]},
        {"label": "sky", "polygon": SQUARE},
        {"label": "gone", "polygon": SQUARE, "deleted": 1},
    ]
    data = {"imgHeight": 6, "imgWidth": 8, "objects": objects}
    write(tmp_path / "json" / "b_gtFine_polygons.json", data)
    code, printed = run("cityscapes-json", tmp_path / "json")
    assert code == 0, printed
    assert classes(tmp_path) == ["road", "sky"]
    found = labels(tmp_path, "b")
    assert (found[1:4, 1:4] == 1).all() and found[0, 0] == 0 and found[5, 0] == 255


CVAT = """<annotations><meta><job><labels>
<label><name>car</name></label><label><name>road</name></label></labels></job></meta>
<image id="0" name="x/a.jpg" width="8" height="6">
<polygon label="road" points="1,1;3,1;3,3;1,3" z_order="1"/>
<box label="car" xtl="2" ytl="2" xbr="7" ybr="4" z_order="0"/>
<mask label="car" rle="1, 2" left="5" top="0" width="3" height="1" z_order="0"/>
<tag label="night"/></image></annotations>"""


def test_cvat(tmp_path, run):
    code, printed = run("cvat", write(tmp_path / "a.xml", CVAT))
    assert code == 0, printed
    assert classes(tmp_path) == ["background", "car", "road"]
    found = labels(tmp_path, "x/a")
    assert found[2, 2] == 2  # the higher z_order, though it comes first
    assert found[4, 7] == 1 and found[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<annotations>", "<annotations", "not a readable CVAT file"),
        (
            "<annotations>",
            '<!DOCTYPE a [<!ENTITY b "c">]><annotations>',
            "defines entities or is not UTF-8",
        ),
        ('rle="1, 2"', 'rle="1, 9"', "do not add up to the 3 pixels"),
        ('left="5"', 'left="inf"', "cannot convert float infinity"),
        ("<tag", "<cuboid", "a shape is a cuboid"),
        ('label="road" ', "", "a shape lacks 'label'"),
        ("x/a.jpg", "z.jpg", "not in --images"),
        ("<image", "<track/><image", "video tracks"),
    ],
)
def test_bad_cvat_files(tmp_path, run, old, new, words):
    code, printed = run("cvat", write(tmp_path / "a.xml", CVAT.replace(old, new, 1)))
    assert code == 1 and words in printed and "Traceback" not in printed


def write_mask(tmp_path, name="b.png", colors=((0, 0, 0), (9, 8, 7)), **options) -> Path:
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = colors
    (tmp_path / "masks").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(tmp_path / "masks" / name, **options)
    return tmp_path / "masks"


def test_color_masks(tmp_path, run):
    listed = write(tmp_path / "classes.txt", "other 0 0 0\ncar 9 8 7\n")
    code, printed = run("rgb", write_mask(tmp_path), "--classes", str(listed))
    assert code == 0, printed
    assert labels(tmp_path, "b").tolist() == [[0] * 4 + [1] * 4] * 6


def test_unknown_colors_stop_the_import(tmp_path, run):
    listed = write(tmp_path / "classes.txt", "other 0 0 0\ncar 9 8 6\n")
    code, printed = run("rgb", write_mask(tmp_path), "--classes", str(listed))
    assert code == 1 and "9 8 7 -> CLASS        (24 pixels)" in printed
    assert not (tmp_path / "out").exists()
    mapping = write(tmp_path / "mapping.txt", "9 8 7 -> car\n0 0 0 -> (ignore)")
    options = ("--classes", str(listed), "--mapping", str(mapping))
    assert run("rgb", tmp_path / "masks", *options)[0] == 0
    assert labels(tmp_path, "b").tolist() == [[255] * 4 + [1] * 4] * 6


def test_color_masks_that_lost_their_colors(tmp_path, run):
    listed = write(tmp_path / "classes.txt", "other 0 0 0\ncar 9 8 7\n")
    folder = write_mask(tmp_path, "b.jpg")
    options = ("--classes", str(listed), "--annotation-suffix", ".jpg")
    code, printed = run("rgb", folder, *options)
    assert code == 1 and "JPEG format, which does not keep colors" in printed
    assert run("rgb", folder, *options[2:])[1].count("--classes") == 1


@pytest.mark.parametrize("file_format", ["coco-json", "rgb"])
def test_the_limit_of_pixels_can_be_raised(tmp_path, run, images, monkeypatch, file_format):
    limits = set()

    def record(path, height, width, max_pixels):
        limits.add(max_pixels)
        return check_size(path, height, width, max_pixels)

    for module in ("decoding", "image_io"):
        monkeypatch.setattr(f"cdgcnet.data.{module}.check_size", record)
    if file_format == "rgb":
        listed = write(tmp_path / "classes.txt", "other 0 0 0\ncar 9 8 7\n")
        arguments = ["rgb", write_mask(tmp_path), "--classes", str(listed)]
    else:
        arguments = ["coco-json", write(tmp_path / "coco.json", coco())]
    code, printed = run(*arguments, "--opts", "INPUT.MAX_PIXELS", "47")  # images have 6 x 8
    assert code == 1
    assert "raise INPUT.MAX_PIXELS" in printed
    assert limits == {47}
    code, printed = run(*arguments, "--opts", "INPUT.MAX_PIXELS", "48", "--overwrite")
    assert code == 0, printed
    assert limits == {47, 48}


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["SEED", "1"], "its only override is --opts INPUT.MAX_PIXELS N"),
        (["INPUT.MAX_PIXELS"], "its only override is --opts INPUT.MAX_PIXELS N"),
        (["INPUT.MAX_PIXELS", "many"], "INPUT.MAX_PIXELS is many"),
        (["INPUT.MAX_PIXELS", "0"], "INPUT.MAX_PIXELS is 0"),
    ],
)
def test_other_overrides_are_refused(tmp_path, run, capsys, opts, words):
    with pytest.raises(SystemExit, match="2"):
        run("coco-json", write(tmp_path / "coco.json", coco()), "--opts", *opts)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_give_the_same_labels(tmp_path, run):
    source = write(tmp_path / "i.json", coco())
    run("coco-json", source)
    before = labels(tmp_path, "x/a")
    assert run("coco-json", source, "--overwrite", "--workers", "2")[0] == 0
    np.testing.assert_array_equal(labels(tmp_path, "x/a"), before)
