"""Grids that line up with pixels, principal components, folded norms."""

import numpy as np
import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet.comparison.features import Projection, fold_batch_norms, grid_size, label_size


def test_grid_of_a_photo():
    # The shorter side, 180, becomes 20 · 8 + 1 = 161 pixels or 21 nodes; the longer one
    # 240 · 161/180 = 214.7, nearest to 27 · 8 + 1 = 217 pixels or 28 nodes.
    assert grid_size(180, 240, 160, 8) == (21, 28)
    assert grid_size(240, 180, 160, 8) == (28, 21)
    # Every second pixel from the first node to the last: 4 labels per node.
    assert label_size(21, 28, 8) == (81, 109)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(8, 400), st.sampled_from([8, 16]))
def test_grid_keeps_the_shape(height, width, shorter_side, stride):
    h, w = grid_size(height, width, shorter_side, stride)
    assert min(h, w) == round(shorter_side / stride) + 1
    assert grid_size(width, height, shorter_side, stride) == (w, h)
    pixels = [(n - 1) * stride + 1 for n in (h, w)]
    ratio = pixels[0] / height
    assert abs(pixels[1] - width * ratio) <= stride * max(1, width / height)


def test_projection_finds_the_direction_of_the_data():
    # All variance lies along (3, 4)/5; a common scale brings it to 1.
    along = torch.tensor([-2.0, -1.0, 1.0, 2.0])[:, None]
    rows = along * torch.tensor([[0.6, 0.8]]) + 7
    projection = Projection.fit([rows[:1], rows[1:]], 1)
    assert projection.explained == pytest.approx(1, abs=1e-5)
    found = projection(rows).astype(np.float32)[:, 0]
    expected = np.array([-2, -1, 1, 2]) / np.sqrt(2.5)  # the mean square of -2, -1, 1, 2
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=2e-3)
    assert np.sign(found[0]) == -np.sign(found[3])


@given(st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_projection_laws(channels, seed):
    rows = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 1
    projected = Projection.fit([rows], channels)(rows).astype(np.float64)
    assert projected.shape == (40, min(channels, 4))
    np.testing.assert_allclose(projected.mean(0), 0, atol=5e-3)
    assert projected.var(0).mean() == pytest.approx(1, rel=5e-3)
    covariance = np.cov(projected.T, bias=True).reshape(projected.shape[1], -1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 5e-3
    if channels >= 4:  # a rotation and one scale: ratios of distances stay
        ours = np.linalg.norm(projected[1:] - projected[0], axis=1)
        theirs = (rows[1:] - rows[0]).norm(dim=1).numpy()
        np.testing.assert_allclose(ours / ours[0], theirs / theirs[0], rtol=2e-2)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN", ""])
def test_folded_norms_change_nothing(norm):
    torch.manual_seed(0)
    conv = Conv2d(4, 32, 3, bias=not norm, norm=get_norm(norm, 32), activation=torch.relu).eval()
    if norm in ("BN", "FrozenBN"):
        for name in ("running_mean", "running_var", "weight", "bias"):
            getattr(conv.norm, name).data.uniform_(0.5, 1.5)
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        before = conv(x)
        fold_batch_norms(torch.nn.Sequential(conv))
        torch.testing.assert_close(conv(x), before)
    assert (conv.norm is None) == (norm != "GN")
