"""The built-in street scenes: what is drawn, and what is (and is never) written."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from cdgcnet.data.synthetic import writer
from cdgcnet.data.synthetic.scene import draw_scene

TARGETS = {7, 8, 11, 17, 20, 21, 22, 23, 24, 25, 26, 33}
IGNORED = {0, 1}  # unlabeled borders, ego vehicle
SMALL = {"num_train": 2, "num_val": 1, "height": 64, "width": 96}
# id -> train id, typed over from cityscapesscripts.helpers.labels
OFFICIAL = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11,
            25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def _digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "deep" / "streets"
    return writer.write_street_scenes(root, num_train=3, num_val=12)


def test_a_seed_fixes_the_scene() -> None:
    first, again, other = (draw_scene(seed) for seed in ((3, 1, 4), (3, 1, 4), (3, 1, 5)))
    for one, same, third in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, third)


def test_drawing_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].copy()
    draw_scene(0, 64, 64)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 131), (96, 512), (256, 128)])
def test_any_size_from_the_minimum_on(height: int, width: int) -> None:
    for seed in range(3):
        image, label_ids = draw_scene(seed, height, width)
        assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
        assert (label_ids.shape, label_ids.dtype) == ((height, width), np.uint8)
        assert set(np.unique(label_ids)) <= TARGETS | IGNORED
        assert np.isin(label_ids, list(TARGETS)).mean() > 0.8


def test_objects_scale_with_the_height() -> None:
    def tallest(height: int) -> float:
        people = [draw_scene(seed, height, 2 * height)[1] == 24 for seed in range(6)]
        return float(np.median([p.any(axis=1).sum() for p in people])) / height

    assert tallest(320) == pytest.approx(tallest(96), rel=0.15)


@pytest.mark.parametrize(("height", "width"), [(63, 320), (160, 10)])
def test_a_tiny_scene_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"sides >= 64.*" + f"{height} x {width}"):
        draw_scene(0, height, width)


def test_the_labels_match_the_picture() -> None:
    """Sky is brighter than road, vegetation greener than sky: in the mean over scenes."""
    means = {label: [] for label in (7, 21, 23)}
    for seed in range(8):
        image, label_ids = draw_scene(seed)
        for label, values in means.items():
            values.append(image[label_ids == label].mean(axis=0))
    road, leaves, sky = (np.mean(means[label], axis=0) for label in (7, 21, 23))
    assert sky.mean() > road.mean() + 20
    assert leaves[1] - leaves[2] > 10 > sky[1] - sky[2]


def test_the_tree_is_what_a_cityscapes_reader_globs(tree: Path) -> None:
    for split, count in (("train", 3), ("val", 12)):
        images = sorted(tree.glob(f"leftImg8bit/{split}/*/*_leftImg8bit.png"))
        assert len(images) == count
        for image in images:
            city, sequence, frame, _ = image.name.split("_")
            assert city == image.parent.name
            assert re.fullmatch(r"\d{6}_\d{6}", f"{sequence}_{frame}")
            assert cv2.imread(str(image), cv2.IMREAD_UNCHANGED).shape == (160, 320, 3)
            stem = image.name.removesuffix("_leftImg8bit.png")
            for kind in ("labelIds", "labelTrainIds"):
                truth = tree / "gtFine" / split / city / f"{stem}_gtFine_{kind}.png"
                pixels = cv2.imread(str(truth), cv2.IMREAD_UNCHANGED)
                assert (pixels.shape, pixels.dtype) == ((160, 320), np.uint8)
    assert len(_digests(tree)) == 3 * 15 + 1


def test_the_files_hold_the_scenes(tree: Path) -> None:
    path = next(tree.glob("leftImg8bit/val/*/*_000002_*.png"))
    image, label_ids = draw_scene((0, 1, 2))
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
    truth = next(tree.glob("gtFine/val/*/*_000002_*_labelIds.png"))
    np.testing.assert_array_equal(cv2.imread(str(truth), cv2.IMREAD_UNCHANGED), label_ids)


def test_train_ids_follow_the_official_table(tree: Path) -> None:
    assert writer.TRAIN_ID_OF_LABEL_ID == OFFICIAL
    for path in tree.rglob("*_gtFine_labelIds.png"):
        label_ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        twin = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        expected = np.vectorize(lambda label: OFFICIAL.get(int(label), 255))(label_ids)
        np.testing.assert_array_equal(cv2.imread(str(twin), cv2.IMREAD_UNCHANGED), expected)


def test_every_class_occurs_often_enough_to_be_learned(tree: Path) -> None:
    paths = sorted(tree.glob("gtFine/val/*/*_labelIds.png"))
    label_ids = np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths])
    for label in TARGETS:
        where = label_ids == label
        assert where.mean() > 0.004, f"label {label} covers {where.mean():.4f}"
        cells = where.reshape(len(paths), 20, 8, 40, 8).sum(axis=(2, 4)) >= 32
        present = cells.any(axis=(1, 2)).mean()  # where output stride 8 can still see it
        assert present >= 0.75, f"label {label} fills a cell in {present:.2f} of the images"
    assert set(np.unique(label_ids)) <= TARGETS | IGNORED


def test_a_rider_is_over_a_bicycle_a_person_is_not() -> None:
    below = {24: [], 25: []}
    for seed in range(6):
        _, label_ids = draw_scene(seed)
        wheels = cv2.dilate((label_ids == 33).astype(np.uint8), np.ones((9, 9), np.uint8))
        for label, shares in below.items():
            shares.append(wheels[label_ids == label].mean())
    assert np.mean(below[25]) > np.mean(below[24]) + 0.1


def test_train_and_val_share_nothing(tree: Path) -> None:
    digests = {
        split: set(_digests(tree / "leftImg8bit" / split).values()) for split in ("train", "val")
    }
    cities = {split: {p.name for p in (tree / "gtFine" / split).iterdir()} for split in digests}
    assert [len(digests[split]) for split in ("train", "val")] == [3, 12]
    assert not digests["train"] & digests["val"]
    assert not cities["train"] & cities["val"]


def test_writing_twice_gives_the_same_bytes_and_the_second_call_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = writer.write_street_scenes(tmp_path / "one", **SMALL)
    two = writer.write_street_scenes(tmp_path / "two", **SMALL, workers=2)
    assert _digests(one) == _digests(two)
    monkeypatch.setattr(writer, "draw_scene", None)
    before = _digests(one)
    assert writer.write_street_scenes(str(one), **SMALL) == one
    assert _digests(one) == before
    assert json.loads((one / "streets.json").read_text()) == {
        **SMALL,
        "seed": 0,
        "generator_version": writer.GENERATOR_VERSION,
    }


@pytest.mark.parametrize("other", [{"seed": 1}, {"height": 80}, {"num_val": 2}])
def test_other_parameters_are_refused(tmp_path: Path, other: dict[str, int]) -> None:
    root = writer.write_street_scenes(tmp_path / "streets", **SMALL)
    before = _digests(root)
    with pytest.raises(ValueError, match="expected") as caught:
        writer.write_street_scenes(root, **{**SMALL, **other})
    name, value = next(iter(other.items()))
    found, expected = str(caught.value).split("expected")
    assert str(root) in found
    assert f"'{name}': {value}" in expected
    assert f"'{name}': {SMALL.get(name, 0)}" in found
    assert _digests(root) == before


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = writer.write_street_scenes(tmp_path / "streets", **SMALL)
    monkeypatch.setattr(writer, "GENERATOR_VERSION", writer.GENERATOR_VERSION + 1)
    with pytest.raises(ValueError, match="generator_version"):
        writer.write_street_scenes(root, **SMALL)


@pytest.mark.parametrize("note", [None, "{", '["a list"]'])
def test_a_foreign_folder_is_left_alone(tmp_path: Path, note: str | None) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    (root / "thesis.txt").write_text("precious")
    if note is not None:
        (root / "streets.json").write_text(note)
    before = _digests(root)
    with pytest.raises(ValueError, match=str(root)):
        writer.write_street_scenes(root, **SMALL)
    assert _digests(root) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("precious")
    with pytest.raises(ValueError, match=str(root)):
        writer.write_street_scenes(root, **SMALL)
    assert root.read_text() == "precious"


@pytest.mark.parametrize(
    "bad",
    [{"num_train": 0}, {"num_val": -1}, {"height": 63}, {"width": 0}, {"seed": -1}, {"workers": 0}],
)
def test_bad_numbers_are_refused_before_anything_is_made(
    tmp_path: Path, bad: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))}={next(iter(bad.values()))}"):
        writer.write_street_scenes(tmp_path / "deep" / "streets", **{**SMALL, **bad})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_no_half_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    whole = writer.draw_scene

    def stop_at_the_second(seed: tuple[int, int, int], *size: int) -> tuple[np.ndarray, np.ndarray]:
        if seed[2] == 1:
            raise error("stopped")
        return whole(seed, *size)

    monkeypatch.setattr(writer, "draw_scene", stop_at_the_second)
    with pytest.raises(error, match="stopped"):
        writer.write_street_scenes(tmp_path / "streets", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.cv2, "imwrite", lambda *_: False)
    with pytest.raises(OSError, match=r"could not write .*_leftImg8bit\.png"):
        writer.write_street_scenes(tmp_path / "streets", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("same", [True, False])
def test_the_loser_of_a_race_takes_the_winners_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    root, whole = tmp_path / "streets", writer.draw_scene

    def let_another_finish_first(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr(writer, "draw_scene", whole)
        writer.write_street_scenes(root, **{**SMALL, "seed": 0 if same else 9})
        return whole(*arguments)

    monkeypatch.setattr(writer, "draw_scene", let_another_finish_first)
    if same:
        assert writer.write_street_scenes(root, **SMALL) == root
    else:
        with pytest.raises(ValueError, match="'seed': 9"):
            writer.write_street_scenes(root, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["streets"]


def test_two_writers_at_once(tmp_path: Path) -> None:
    root = tmp_path / "streets"
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(writer.write_street_scenes, root, **SMALL) for _ in range(2)]
    assert [writer.result() for writer in writers] == [root, root]
    assert [path.name for path in tmp_path.iterdir()] == ["streets"]
    assert len(_digests(root)) == 10
