"""Resize-and-crop equals resizing everything and cropping."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cdgcnet.data.transforms import ResizeCropTransform, _aligned, _nearest


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def both(image: np.ndarray, new_size: tuple[int, int], crop: tuple[int, int, int, int]):
    """The crop (y, x, h, w) of the whole resized image, and ours."""
    resize = T.ResizeTransform(*image.shape[:2], *new_size)
    y, x, h, w = crop
    ours = ResizeCropTransform(resize, y, x, h, w).apply_image(image)
    return resize.apply_image(image)[y : y + h, x : x + w], ours


@st.composite
def cases(draw):
    """(h, w), (new h, new w), (y, x, crop h, crop w): any sizes, also with common divisors."""
    unit = draw(st.sampled_from([1, 8]))
    size = [unit * draw(st.integers(1, 80 // unit)) for _ in range(2)]
    new = [unit * draw(st.integers(1, 160 // unit)) for _ in range(2)]
    start = [draw(st.integers(0, n - 1)) for n in new]
    length = [draw(st.integers(1, n - s)) for n, s in zip(new, start, strict=True)]
    return size, new, (*start, *length)


@given(cases(), st.integers(0, 99))
def test_labels_are_exactly_those_of_the_whole_resize(case, seed):
    size, new, (y, x, h, w) = case
    labels = noise(*size, seed)[:, :, 0]
    resize = T.ResizeTransform(*size, *new)
    whole = resize.apply_segmentation(labels)[y : y + h, x : x + w]
    ours = ResizeCropTransform(resize, y, x, h, w).apply_segmentation(labels)
    np.testing.assert_array_equal(ours, whole)


@given(cases(), st.integers(0, 99))
def test_images_differ_by_no_more_than_the_rounding_between_pillows_passes(case, seed):
    size, new, crop = case
    whole, ours = both(noise(*size, seed), new, crop)
    assert ours.shape == whole.shape
    assert np.abs(ours.astype(int) - whole).max() <= 1


@given(cases(), st.integers(0, 99))
def test_one_axis_is_exact(case, seed):
    # With a single pass there is no order of passes: bit for bit, shrinking or enlarging.
    (height, width), (new_height, new_width), (y, x, h, w) = case
    whole, ours = both(noise(height, width, seed), (new_height, width), (y, 0, h, width))
    np.testing.assert_array_equal(ours, whole)
    whole, ours = both(noise(height, width, seed), (height, new_width), (0, x, height, w))
    np.testing.assert_array_equal(ours, whole)


@pytest.mark.parametrize("ratio", [0.5, 0.703125, 1.0, 1.25, 1.984375])
@pytest.mark.parametrize("corner", [0.0, 0.37, 1.0])
def test_training_crops_of_street_images_are_exact(ratio, corner):
    # A quarter of the size of Cityscapes and of the paper's crop; same ratios.
    height, width, size = 256, 512, 193
    new = round(height * ratio), round(width * ratio)
    h, w = min(size, new[0]), min(size, new[1])
    crop = (round((new[0] - h) * corner), round((new[1] - w) * corner), h, w)
    whole, ours = both(noise(height, width), new, crop)
    np.testing.assert_array_equal(ours, whole)


def test_only_the_shown_part_of_the_source_is_read():
    # 64 -> 128 rows, crop rows 0..9. gcd 64: edges at every source row, margin 2 + 1 = 3 resized
    # rows: 13 resized rows, 6.5 source rows, so 7. What lies below may be missing altogether.
    resize = T.ResizeTransform(64, 32, 128, 64)
    crop = ResizeCropTransform(resize, 0, 0, 10, 64)
    assert crop.rows_needed == 7
    image = noise(64, 32)
    np.testing.assert_array_equal(crop.apply_image(image[:7]), crop.apply_image(image))


@given(st.integers(1, 300), st.integers(1, 600), st.data())
def test_aligned_parts_keep_ratio_and_hold_the_crop(in_size, out_size, data):
    start = data.draw(st.integers(0, out_size - 1))
    stop = data.draw(st.integers(start + 1, out_size))
    source, resized = _aligned(start, stop, in_size, out_size)
    assert 0 <= source.start < source.stop <= in_size
    assert 0 <= resized.start <= start and stop <= resized.stop <= out_size
    # start and length have the ratio of the whole: a / b = in / out as whole numbers.
    assert source.start * out_size == resized.start * in_size
    assert source.stop * out_size == resized.stop * in_size


@given(st.integers(1, 250), st.integers(1, 2000))
def test_nearest_index_is_pillows(in_size, out_size):
    row = np.arange(in_size, dtype=np.uint8)[None]
    pillow = np.asarray(Image.fromarray(row).resize((out_size, 1), Image.Resampling.NEAREST))[0]
    np.testing.assert_array_equal(_nearest(in_size, out_size), pillow)


def test_coordinates_move_with_the_pixels():
    # x2, then the crop's corner (x 3, y 5) becomes the origin: (4, 6) -> (8, 12) -> (5, 7).
    transform = ResizeCropTransform(T.ResizeTransform(10, 10, 20, 20), 5, 3, 8, 8)
    np.testing.assert_allclose(transform.apply_coords(np.array([[4.0, 6.0]])), [[5.0, 7.0]])
