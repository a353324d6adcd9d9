"""Windows of the sliding-window inference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet.modeling.sliding_window import SlidingWindow, starts


@pytest.mark.parametrize(
    ("length", "crop", "stride", "expected"),
    [
        (10, 4, 3, [0, 3, 6]),  # 0-4, 3-7, 6-10: it ends with the axis
        (11, 4, 3, [0, 3, 6, 7]),  # the fourth would be 9-13: moved back to 7-11
        (4, 4, 3, [0]),
        (3, 4, 3, [0]),  # the window is larger than the axis
        (1, 4, 4, [0]),
        (2048, 769, 513, [0, 513, 1026, 1279]),
    ],
)
def test_starts(length, crop, stride, expected):
    assert starts(length, crop, stride) == expected


def test_counts_by_hand():
    # Rows 0-3 and 1-4 of 5 pixels 4 high, stride 2; columns 0-2 in one window.
    slide = SlidingWindow((4, 4), (2, 2))
    assert slide.counts((5, 3)).tolist() == [[c] * 3 for c in (1, 2, 2, 2, 1)]
    assert list(slide.windows((5, 3))) == [
        (slice(0, 4), slice(0, 3)),
        (slice(1, 5), slice(0, 3)),
    ]


@st.composite
def slides(draw):
    crop = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    stride = tuple(draw(st.integers(1, c)) for c in crop)
    return SlidingWindow(crop, stride), (draw(st.integers(1, 60)), draw(st.integers(1, 60)))


@given(slides())
def test_windows_cover_every_pixel_as_often_as_counted(case):
    slide, size = case
    held = torch.zeros(size)
    windows = list(slide.windows(size))
    for rows, columns in windows:
        assert rows.stop - rows.start == min(slide.crop[0], size[0])
        assert columns.stop - columns.start == min(slide.crop[1], size[1])
        held[rows, columns] += 1
    assert held.min() >= 1 and torch.equal(held, slide.counts(size))
    assert len(set(map(str, windows))) == len(windows)
    assert slide.covers(size) == (len(windows) == 1)
