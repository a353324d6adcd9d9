"""Bilinear resizing along one axis is that of ``F.interpolate``."""

import pytest
import torch
from torch.nn import functional as F

from cdgc.interpolation import resize_matrix, resize_taps


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("sizes", [(97, 769), (5, 2), (1, 3), (4, 1), (300, 2400)], ids=str)
def test_the_matrix_resizes_as_interpolate_does(sizes, align_corners):
    x = torch.rand(1, 1, sizes[0], 1)
    expected = F.interpolate(x, (sizes[1], 1), mode="bilinear", align_corners=align_corners)
    matrix = resize_matrix(*sizes, align_corners, x)
    torch.testing.assert_close(matrix @ x[0, 0], expected[0, 0])
    torch.testing.assert_close(matrix.sum(1), torch.ones(sizes[1]))


def test_half_precision_has_the_positions_of_single():
    """Bfloat16 has no 257: positions in it would be wrong by whole pixels."""
    half, single = (
        resize_taps(97, 769, True, torch.empty(0, dtype=dtype))
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half[2].dtype == torch.bfloat16
    for found, expected in zip(half[:2], single[:2], strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(half[2].float(), single[2], atol=4e-3, rtol=0)
