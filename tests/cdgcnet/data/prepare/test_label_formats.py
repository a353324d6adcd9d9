"""Reading MATLAB files of both kinds, mapping label values, writing palette PNGs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet.data.prepare.label_formats import map_labels, read_png, save_labels
from cdgcnet.data.prepare.matlab import is_hdf5, read_mat, require_variable

S = np.arange(24).reshape(4, 6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", ["mat", "mat73"])
def test_both_matlab_formats_give_rows_and_columns(request, tmp_path, version, packed):
    path = request.getfixturevalue(version)(tmp_path / "a.mat", S=S, other=np.ones(3))
    content = path.read_bytes() if packed else path
    assert is_hdf5(content) == (version == "mat73")
    variables = read_mat(content, "S", "absent")
    assert set(variables) == {"S"}
    np.testing.assert_array_equal(variables["S"], S)


@pytest.mark.parametrize("version", ["mat", "mat73"])
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_matlab_files(request, tmp_path, version, packed):
    noise = np.random.default_rng(0).integers(0, 99, (99, 99))
    path = request.getfixturevalue(version)(tmp_path / "a.mat", S=noise)
    whole = path.read_bytes()
    for data in (b"", b"<html>", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a readable MATLAB file"):
            read_mat(data if packed else path, "S")


def test_a_missing_variable_is_named():
    with pytest.raises(ValueError, match="LabelMap"):
        require_variable({}, "LabelMap")


# ---------------------------------------------------------------- values


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.permutations(range(6)))
def test_mapping_is_the_table_value_by_value(values, table):
    mapped = map_labels(np.array([values], np.int16), np.array(table), "one of six")
    assert mapped.dtype == np.uint8
    assert mapped.tolist() == [[table[v] for v in values]]


def test_float_labels_are_read_too():
    # MATLAB's default type is double: COCO-Stuff 1.1 was computed by `find`.
    assert map_labels(np.array([[0.0, 2.0]]), np.array([7, -1, 9]), "0 or 2").tolist() == [[7, 9]]


@pytest.mark.parametrize("wrong", [1, 3, -1, 0.5, np.nan])
def test_a_forbidden_value_is_named(wrong):
    with pytest.raises(ValueError, match=f"label value {wrong} is not 0 or 2; values found"):
        map_labels(np.array([[0, wrong, 2]]), np.array([7, -1, 9]), "0 or 2")


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(height, width\)"):
        map_labels(np.zeros(shape, np.uint8), np.zeros(256, np.int64), "anything")


# ---------------------------------------------------------------- PNGs


def test_palette_pngs_hold_the_raw_labels(tmp_path, image, read):
    labels = np.uint8(S % 3)
    labels[0, 0] = 255
    target = tmp_path / "new" / "a.png"
    save_labels(labels, [(9, 8, 7), (1, 2, 3), (4, 5, 6)], image(tmp_path / "a.jpg"), target)
    values, mode = read(target)
    assert mode == "P"
    np.testing.assert_array_equal(values, labels)
    with Image.open(target) as png:
        assert png.convert("RGB").getpixel((1, 0)) == (1, 2, 3)
    for content in (target, target.read_bytes()):
        np.testing.assert_array_equal(read_png(content), labels)


def test_color_masks_are_refused_also_from_an_archive(tmp_path, image):
    path = image(tmp_path / "a.png")
    for content in (path, path.read_bytes()):
        with pytest.raises(ValueError, match="color image"):
            read_png(content)


def test_no_label_of_a_missing_damaged_or_turned_image(tmp_path, image):
    labels, target = np.zeros((4, 6), np.uint8), tmp_path / "a.png"
    picture = tmp_path / "a.jpg"
    with pytest.raises(FileNotFoundError, match=r"a\.jpg"):
        save_labels(labels, [], picture, target)
    image(picture, height=6, width=4)
    with pytest.raises(ValueError, match=r"labels are 4 x 6, but the image .*a\.jpg is 6 x 4"):
        save_labels(labels, [], picture, target)
    image(picture)
    picture.write_bytes(picture.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable image"):
        save_labels(labels, [], picture, target)
    assert not target.exists()
