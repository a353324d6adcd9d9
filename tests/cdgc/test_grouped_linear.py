"""The group graph convolution: row block m times W_m (Eq. 1)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import relative

from cdgc import class_linear


def test_by_hand():
    # Block 0 (one row) times W_0 = 2 I, block 1 is empty, block 2 (two rows) times a swap.
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    weight = torch.tensor(
        [[[2.0, 0.0], [0.0, 2.0]], [[9.0, 9.0], [9.0, 9.0]], [[0.0, 1.0], [1.0, 0.0]]]
    )
    assert class_linear(x, weight, [1, 0, 2]).tolist() == [[2.0, 4.0], [4.0, 3.0], [6.0, 5.0]]


def test_rows_times_weight_not_its_transpose():
    # (1, 0) times [[0, 7], [0, 0]] picks row 0 of W: (0, 7); the transpose would give (0, 0).
    weight = torch.tensor([[[0.0, 7.0], [0.0, 0.0]]])
    assert class_linear(torch.tensor([[1.0, 0.0]]), weight, [1]).tolist() == [[0.0, 7.0]]


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 999),
)
def test_equals_a_loop(lengths, channels, width, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), channels, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(
        len(lengths), channels, width, generator=g, dtype=torch.float64
    ).requires_grad_()
    probe = torch.randn(sum(lengths), width, generator=g, dtype=torch.float64)
    found = class_linear(x, weight, lengths)
    expected = torch.cat([rows @ weight[m] for m, rows in enumerate(x.split(lengths))])
    assert found.shape == (sum(lengths), width)
    assert relative(found, expected) <= 1e-10
    ours = torch.autograd.grad((found * probe).sum(), [x, weight])
    theirs = torch.autograd.grad((expected * probe).sum(), [x, weight])
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) <= 1e-10
    for m, n in enumerate(lengths):  # an absent class: a gradient of zero, not a missing one
        if n == 0:
            assert not ours[1][m].any()


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(3, 2, 3, generator=g, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: class_linear(x, w, [2, 0, 3]), (x, weight))


def test_autocast_runs_in_bfloat16():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(6, 8, generator=g), torch.randn(3, 8, 8, generator=g).requires_grad_()
    exact = class_linear(x, weight, [2, 0, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_linear(x, weight, [2, 0, 4])
    assert relative(found.float(), exact) < 0.02  # bfloat16 keeps 8 bits
    found.float().sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("lengths", [[5], [2, 2], [2, 4], [5, 0, 0]])
def test_bad_lengths(lengths):
    x, weight = torch.zeros(5, 3), torch.zeros(2, 3, 3)
    with pytest.raises(ValueError):
        class_linear(x, weight, lengths)


def test_bad_channels():
    with pytest.raises(ValueError, match="4"):
        class_linear(torch.zeros(5, 4), torch.zeros(2, 3, 3), [2, 3])
