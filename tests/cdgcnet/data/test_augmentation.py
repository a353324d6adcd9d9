"""Training augmentations: image and labels stay aligned, sizes are exact, draws are fair."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet import load_cfg
from cdgcnet.data.augmentation import (
    PaddedCrop,
    PadTransform,
    ResizeForTest,
    ScaledCrop,
    ScaleJitter,
    build_test_augmentations,
    build_train_augmentations,
)
from cdgcnet.data.train_loader import seeded

IGNORE = 255
# One color per label; the padding color is that of the ignore label, so that one table serves.
PAD_COLOR = (124.0, 116.0, 104.0)
COLORS = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
COLORS[IGNORE] = PAD_COLOR


def blocks(height: int, width: int, seed: int, block: int = 1) -> np.ndarray:
    """Random labels 0-9 and some ignore, constant in blocks."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 11, (-(-height // block), -(-width // block)))
    small[small == 10] = IGNORE
    return np.kron(small, np.ones((block, block)))[:height, :width].astype(np.uint8)


def augmented(augmentations, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    inputs = T.AugInput(COLORS[labels], sem_seg=labels)
    with seeded(seed):
        T.AugmentationList(augmentations)(inputs)
    return inputs.image, inputs.sem_seg


def crop(size, **options) -> PaddedCrop:
    return PaddedCrop(size, PAD_COLOR, IGNORE, **options)


sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------- alignment


@given(sides, sides, sides, sides, seeds, st.sampled_from([1.0, 0.6]))
def test_crop_pad_and_flip_keep_image_and_labels_aligned(h, w, crop_h, crop_w, seed, limit):
    labels = blocks(h, w, seed)
    steps = [crop((crop_h, crop_w), max_category_area=limit), T.RandomFlip(horizontal=True)]
    image, out = augmented(steps, labels, seed)
    assert out.shape == (crop_h, crop_w) and image.shape == (crop_h, crop_w, 3)
    np.testing.assert_array_equal(image, COLORS[out])  # exactly, padding included


def interior(labels: np.ndarray) -> np.ndarray:
    """Pixels whose 3 x 3 neighborhood is one label (borders left out)."""
    windows = np.lib.stride_tricks.sliding_window_view(labels, (3, 3))
    inside = np.zeros(labels.shape, bool)
    inside[1:-1, 1:-1] = (windows == labels[1:-1, 1:-1, None, None]).all(axis=(2, 3))
    return inside


@given(st.integers(16, 80), st.integers(16, 80), st.floats(0.5, 2.0), seeds)
def test_scaling_keeps_image_and_labels_aligned(height, width, ratio, seed):
    # The image is interpolated over one output pixel to each side at most (Pillow widens its
    # filter when it shrinks), labels take the nearest: inside a region both must agree.
    # Blocks of 8: at ratio 0.5 a region is still 4 wide and cannot fall between two samples.
    labels = blocks(height, width, seed, block=8)
    image, out = augmented([ScaleJitter((ratio, ratio))], labels, seed)
    inside = interior(out)
    difference = np.abs(image.astype(int) - COLORS[out])[inside]
    assert difference.size == 0 or difference.max() <= 1  # 1: rounding of the fixed-point filter


def test_scaling_does_not_drift():
    # A half-pixel error of the label resize would leave the blocks' interiors equal and shift the
    # borders: the border between two halves must stay in the middle at every ratio.
    for ratio in (0.5, 0.75, 1.25, 1.5, 2.0):
        labels = np.zeros((8, 64), np.uint8)
        labels[:, 32:] = 1
        _, out = augmented([ScaleJitter((ratio, ratio))], labels, 0)
        assert out.shape == (8 * ratio, 64 * ratio)
        np.testing.assert_array_equal((out == 1).sum(axis=1), 32 * ratio)


@given(st.integers(8, 60), st.integers(8, 60), st.integers(1, 70), st.integers(1, 70), seeds)
def test_no_label_appears_that_was_not_there(height, width, crop_h, crop_w, seed):
    labels = blocks(height, width, seed)
    steps = [ScaleJitter((0.5, 2.0)), crop((crop_h, crop_w)), T.RandomFlip(horizontal=True)]
    image, out = augmented(steps, labels, seed)
    assert image.shape == (crop_h, crop_w, 3)
    assert set(np.unique(out)) <= set(np.unique(labels)) | {IGNORE}
    assert out.dtype == np.uint8


@given(
    st.integers(4, 60), st.integers(4, 60), st.integers(1, 50), st.sampled_from([1.0, 0.5]), seeds
)
def test_scaled_crop_is_scale_jitter_then_crop(height, width, side, limit, seed):
    # The same draws and the same labels exactly; image values as test_resize.py says.
    labels = blocks(height, width, seed, block=4)
    jitter, cut = ScaleJitter((0.5, 2.0)), crop((side, side), max_category_area=limit)
    image, out = augmented([jitter, cut], labels, seed)
    fused_image, fused = augmented([ScaledCrop(jitter, cut)], labels, seed)
    np.testing.assert_array_equal(fused, out)
    assert np.abs(fused_image.astype(int) - image).max() <= 1


# ---------------------------------------------------------------- sizes and padding


@pytest.mark.parametrize("size", [(769, 769), (513, 513), (520, 520), (1, 1), (33, 1000)])
@pytest.mark.parametrize("shape", [(360, 480), (1024, 800), (1, 1)])
def test_crop_size_is_exact(size, shape):
    image, out = augmented([crop(size)], np.zeros(shape, np.uint8), 0)
    assert image.shape[:2] == out.shape == size
    # What was not there is ignored: all pixels outside min(shape, size).
    kept = min(shape[0], size[0]) * min(shape[1], size[1])
    assert (out == IGNORE).sum() == size[0] * size[1] - kept


def test_padding_is_at_the_right_and_bottom_in_the_mean_color():
    labels = np.ones((2, 3), np.uint8)
    image = np.full((2, 3, 3), 7, np.uint8)
    pad = PadTransform(1, 2, [123.675, 116.28, 103.53], IGNORE)
    np.testing.assert_array_equal(
        pad.apply_segmentation(labels),
        [[1, 1, 1, 255, 255], [1, 1, 1, 255, 255], [255, 255, 255, 255, 255]],
    )
    padded = pad.apply_image(image)
    assert (padded[:2, :3] == 7).all()
    for corner in (padded[0, 3], padded[2, 0], padded[2, 4]):
        np.testing.assert_array_equal(corner, [124, 116, 104])  # rounded ImageNet mean


def test_padding_takes_the_configured_ignore_label():
    # Detectron2's v0.6 FixedSizeCrop would put class 0 here.
    cropped = PaddedCrop((3, 3), PAD_COLOR, 11)
    inputs = T.AugInput(np.zeros((2, 2, 3), np.uint8), sem_seg=np.zeros((2, 2), np.uint8))
    T.AugmentationList([cropped])(inputs)
    np.testing.assert_array_equal(inputs.sem_seg, [[0, 0, 11], [0, 0, 11], [11, 11, 11]])


def test_an_image_larger_than_the_crop_is_not_padded():
    _, out = augmented([crop((5, 7))], np.zeros((9, 9), np.uint8), 0)
    assert (out == 0).all()


# ---------------------------------------------------------------- draws


def offsets(count: int, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """Upper left corners of ``count`` crops, read off labels that hold their own position."""
    image = np.zeros((height, width, 3), np.uint8)
    position = np.zeros((height, width), np.uint8)
    drawn = []
    with seeded(1):
        for _ in range(count):
            first = crop(size).get_transform(image, position).transforms[0]
            drawn.append((first.y0, first.x0))
    return np.array(drawn)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_crop_offsets_are_uniform_and_independent_on_both_axes():
    # 10 - 6 + 1 = 5 rows, 12 - 6 + 1 = 7 columns to start from: 35 corners, 100 draws each.
    drawn = offsets(3500, 10, 12, (6, 6))
    table = np.zeros((5, 7), int)
    np.add.at(table, (drawn[:, 0], drawn[:, 1]), 1)
    # Uniform over the *pairs* is uniform on each axis and independent at once.
    # Chi-square with 34 degrees of freedom: mean 34, standard deviation sqrt(68) = 8.2;
    # 34 + 5 * 8.2 = 75. One shared random number for both axes would give thousands.
    assert chi_square(table) < 75
    assert chi_square(table.sum(axis=1)) < 4 + 5 * np.sqrt(8)
    assert chi_square(table.sum(axis=0)) < 6 + 5 * np.sqrt(12)


def test_crop_reaches_the_last_row_and_column():
    drawn = offsets(200, 4, 3, (3, 2))
    assert set(drawn[:, 0]) == {0, 1} and set(drawn[:, 1]) == {0, 1}


def test_scale_ratios_fill_their_range_uniformly():
    jitter = ScaleJitter((0.5, 2.0))
    image = np.zeros((1000, 500, 3), np.uint8)
    with seeded(2):
        drawn = [jitter.get_transform(image) for _ in range(2000)]
    ratios = np.array([t.new_h / 1000 for t in drawn])
    assert ratios.min() >= 0.5 and ratios.max() <= 2.0
    # Ratios are k / 64 with k = 32 … 128: eight bins of 12 values hold 2000 * 12 / 96 = 250 each
    # (the two ends, half as likely as the others, together make one value).
    # Chi-square with 7 degrees: 7 + 5 * sqrt(14) = 26.
    steps = np.round(ratios * 64)
    assert np.abs(ratios * 64 - steps).max() < 0.04  # 1000 rows: rounded to 1 / 1000
    assert chi_square(np.histogram(steps, 8, (32, 128))[0]) < 26
    # One ratio for both axes: the shape is kept up to half a pixel.
    assert all(abs(t.new_w - t.new_h / 2) <= 1 for t in drawn)


def test_scale_starts_from_the_short_edge():
    # Short edge 120 -> 180 at ratio 1: x 1.5, so 160 becomes 240.
    transform = ScaleJitter((1.0, 1.0), (180,)).get_transform(np.zeros((120, 160, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (180, 240)
    # A portrait image's short edge is its width.
    transform = ScaleJitter((1.0, 1.0), (180,)).get_transform(np.zeros((160, 120, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (240, 180)
    # Ratio 2 on top: 360 x 480.
    transform = ScaleJitter((2.0, 2.0), (180,)).get_transform(np.zeros((120, 160, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (360, 480)


def test_scale_draws_one_of_several_short_edges():
    jitter = ScaleJitter((1.0, 1.0), (10, 20))
    with seeded(0):
        heights = {jitter.get_transform(np.zeros((5, 9, 3), np.uint8)).new_h for _ in range(50)}
    assert heights == {10, 20}


def test_a_tiny_image_keeps_at_least_one_pixel():
    transform = ScaleJitter((0.1, 0.1)).get_transform(np.zeros((1, 3, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (1, 1)


# ---------------------------------------------------------------- single-category limit


def shares(labels: np.ndarray) -> float:
    """Largest share of one category among labeled pixels."""
    counts = np.bincount(labels[labels != IGNORE].ravel(), minlength=1)
    return counts.max() / max(counts.sum(), 1)


def test_single_category_limit_is_kept_where_it_can_be():
    # Left three quarters 0, right quarter 1; half of the crops see only zeros.
    labels = np.zeros((16, 64), np.uint8)
    labels[:, 48:] = 1
    found = {}
    for limit in (1.0, 0.75):
        step = crop((16, 16), max_category_area=limit)
        found[limit] = [shares(augmented([step], labels, s)[1]) for s in range(200)]
    # 49 offsets; the share of zeros is <= 0.75 (and of ones too) at offsets 36..44: 9 of 49.
    # Without the limit 9/49 = 18 % of crops fulfil it; with ten tries 1 - (40/49)**10 = 87 %.
    fulfilled = {limit: np.mean(np.array(v) <= 0.75) for limit, v in found.items()}
    assert fulfilled[1.0] == pytest.approx(9 / 49, abs=0.1)
    assert fulfilled[0.75] == pytest.approx(1 - (40 / 49) ** 10, abs=0.1)


def test_ignored_pixels_do_not_count_for_the_limit():
    # 12 of 16 pixels ignored, 2 + 2 labeled: each category covers half of what is labeled.
    labels = np.full((4, 4), IGNORE, np.uint8)
    labels[0] = [0, 0, 1, 1]
    step = crop((4, 4), max_category_area=0.5)
    assert step._category_area(labels) == 0.5
    assert step._category_area(np.full((4, 4), IGNORE, np.uint8)) == 0


def test_a_limit_no_crop_can_meet_still_gives_a_crop():
    _, out = augmented([crop((4, 4), max_category_area=0.1)], np.zeros((8, 8), np.uint8), 0)
    assert out.shape == (4, 4)


# ---------------------------------------------------------------- from the config


def config(*overrides: str):
    return load_cfg("", ["MODEL.DEVICE", "cpu", *overrides])


def test_config_order_and_switches():
    names = [type(a).__name__ for a in build_train_augmentations(config())]
    assert names == ["ScaledCrop", "RandomFlip"]
    whole = config("INPUT.CROP.ENABLED", "False")
    assert [type(a).__name__ for a in build_train_augmentations(whole)] == [
        "ScaleJitter",
        "RandomFlip",
    ]
    more = config("INPUT.COLOR_JITTER", "True", "INPUT.RANDOM_FLIP", "none")
    names = [type(a).__name__ for a in build_train_augmentations(more)]
    assert names[0] == "ScaledCrop" and "RandomFlip" not in names
    assert set(names[1:]) == {"RandomBrightness", "RandomContrast", "RandomSaturation"}


def test_flip_happens_half_the_time():
    labels = np.array([[0, 1]], np.uint8)
    [flip] = [a for a in build_train_augmentations(config()) if isinstance(a, T.RandomFlip)]
    flipped = sum(int(augmented([flip], labels, seed)[1][0, 0]) for seed in range(1000))
    assert abs(flipped - 500) < 5 * np.sqrt(1000 / 4)  # five standard deviations


def test_color_jitter_leaves_labels_and_dtype_alone():
    cfg = config("INPUT.COLOR_JITTER", "True")
    labels = blocks(8, 8, 0)
    steps = [a for a in build_train_augmentations(cfg) if "Random" in type(a).__name__]
    steps = [a for a in steps if not isinstance(a, T.RandomFlip)]
    image, out = augmented(steps, labels, 0)
    np.testing.assert_array_equal(out, labels)
    assert image.dtype == np.uint8 and not np.array_equal(image, COLORS[labels])


def test_test_augmentation_keeps_the_size_by_default():
    [resize] = build_test_augmentations(config())
    image = np.zeros((37, 53, 3), np.uint8)
    assert resize.get_transform(image).apply_image(image).shape == image.shape


# ---------------------------------------------------------------- the resize before inference


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 64), st.integers(1, 128))
def test_no_image_is_larger_than_the_limit(height, width, min_size, max_size):
    image = np.zeros((height, width, 3), np.uint8)
    resized = ResizeForTest(min_size, max_size).get_transform(image).apply_image(image)
    assert max(resized.shape) <= max(max_size, 3)
    if min_size == 0 and max(height, width) <= max_size:
        assert resized is image  # INPUT.MIN_SIZE_TEST 0 keeps the size


@given(st.integers(2, 200), st.integers(2, 200))
def test_a_shortest_edge_gives_the_size_of_detectron2(height, width):
    image = np.zeros((height, width, 3), np.uint8)
    ours, theirs = ResizeForTest(48, 100), T.ResizeShortestEdge([48, 48], 100)
    shapes = [a.get_transform(image).apply_image(image).shape for a in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_the_longer_edge_of_a_large_photo_decides():
    image = np.zeros((60, 80, 3), np.uint8)
    resized = ResizeForTest(0, 40).get_transform(image).apply_image(image)
    assert resized.shape == (30, 40, 3)
