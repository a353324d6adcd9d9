"""A_m X per segment (Eqs. 2-3): softmax, mean and top-k over rows packed by segment."""

from math import exp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import adjacency, relative

from cdgc import NodeSet, segment_attention, segment_topk_attention
from cdgc.gather import UniformGraphs

LENGTHS = st.lists(st.integers(0, 6), min_size=0, max_size=6)


def draw(seed, rows, channels, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, channels, generator=g, dtype=dtype).requires_grad_() for _ in range(3)
    ]


def dense(q, k, v, lengths, scale, edges="similarity", topk=64, topk_weights="softmax"):
    """The oracle's A over all rows at once, one mask per segment, times v."""
    eye, start, out = torch.eye(q.shape[1], dtype=q.dtype), 0, v * 0
    # F = q k^T comes out of the oracle's phi(x) phi'(x)^T for x = [q, k], phi = [1; 0], [0; 1].
    x = torch.cat([q, k], 1)
    first, second = torch.cat([eye, 0 * eye]), torch.cat([0 * eye, eye])
    for n in lengths:
        members = set(range(start, start + n))
        out = out + adjacency(x, members, first, second, edges, scale, topk, topk_weights) @ v
        start += n
    return out


def gradients(y, leaves):
    g = torch.Generator().manual_seed(9)
    probe = torch.randn(y.shape, generator=g, dtype=y.dtype)
    found = torch.autograd.grad((y * probe).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(t) if d is None else d for t, d in zip(leaves, found, strict=True)]


def same(found, expected, leaves):
    assert relative(found, expected) <= 1e-10
    for a, b in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        assert relative(a, b) <= 1e-10


def packed(rows, lengths):
    """Segments of rows that are pixels already, in order, each in one segment."""
    place = torch.arange(rows)
    node_index = torch.stack([place, torch.full_like(place, -1)], 1)
    return UniformGraphs(NodeSet(place, torch.tensor(lengths)[:, None], node_index), lengths)


def segment_mean(x, lengths):
    return packed(len(x), lengths).mean(x)


def test_attention_by_hand():
    # Segment of two rows, q = (1, 0), k = (0, ln 3), scale 1. Row 0: F = (0, ln 3), so
    # A = (1, 3) / 4 and y = 1/4 * 8 + 3/4 * 4 = 5. Row 1: F = (0, 0), y = (8 + 4) / 2 = 6.
    # The second segment has one row: A = 1 whatever its F = 50, y = its own v.
    q = torch.tensor([[1.0], [0.0], [5.0]], dtype=torch.float64)
    k = torch.tensor(
        [[0.0], [torch.log(torch.tensor(3.0, dtype=torch.float64))], [10.0]], dtype=torch.float64
    )
    v = torch.tensor([[8.0], [4.0], [-7.0]], dtype=torch.float64)
    found = segment_attention(q, k, v, [2, 1], 1.0)
    assert torch.allclose(found, torch.tensor([[5.0], [6.0], [-7.0]], dtype=torch.float64))
    # scale 2 makes it A = (1, 9) / 10: 0.8 + 3.6 = 4.4
    assert segment_attention(q, k, v, [2, 1], 2.0)[0].item() == pytest.approx(4.4)


def test_mean_by_hand():
    x = torch.tensor([[1.0, 10.0], [3.0, 20.0], [5.0, -1.0]])
    assert segment_mean(x, [2, 1]).tolist() == [[2.0, 15.0], [5.0, -1.0]]
    assert segment_mean(x, [3]).tolist() == [[3.0, pytest.approx(29 / 3)]]


def test_mean_over_shared_pixels_by_hand():
    # Three pixels, x = 1, 3, 8. Class 0 holds pixels 0 and 1, class 1 pixels 1 and 2: pixel 1 is
    # in both. Means (1+3)/2 = 2 and (3+8)/2 = 5.5; back at the pixels 2, 2 + 5.5 and 5.5.
    nodes = NodeSet(
        pixel=torch.tensor([0, 1, 1, 2]),
        counts=torch.tensor([[2], [2]]),
        node_index=torch.tensor([[0, -1], [1, 2], [-1, 3]]),
    )
    x = torch.tensor([[1.0], [3.0], [8.0]], requires_grad=True)
    segments = UniformGraphs(nodes, [2, 2])
    mean = segments.mean(x)
    assert mean.tolist() == [[2.0], [5.5]]
    out = segments.to_pixels(mean)
    assert out.tolist() == [[2.0], [7.5], [5.5]]
    # d(sum)/dx: each mean is read twice, and each of its pixels holds half of it.
    out.sum().backward()
    assert x.grad.tolist() == [[1.0], [2.0], [1.0]]


@pytest.mark.parametrize("lengths", [[2, 0, 2], [3], [5]])
def test_segments_are_not_empty_and_hold_all_nodes(lengths):
    with pytest.raises(ValueError, match="positive and sum to the 4 nodes"):
        packed(4, lengths)


def test_topk_by_hand():
    # One segment of three, q = 1, k = (0, 1, 2), so each row's best two are rows 1 and 2 with
    # weights (e, e^2) / (e + e^2) = 1/(1+e), e/(1+e); v = (100, 1, 3). Equal weights: (1+3)/2.
    q = torch.ones(3, 1, dtype=torch.float64)
    k = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    v = torch.tensor([[100.0], [1.0], [3.0]], dtype=torch.float64)
    found = segment_topk_attention(q, k, v, [3], 1.0, 2)
    assert found.flatten().tolist() == pytest.approx([(1 + 3 * exp(1)) / (1 + exp(1))] * 3)
    found = segment_topk_attention(q, k, v, [3], 1.0, 2, weights="equal")
    assert found.flatten().tolist() == pytest.approx([2.0] * 3)
    # A negative similarity turns the order round: rows 0 and 1 for q = -1.
    found = segment_topk_attention(-q, k, v, [3], 1.0, 2, weights="equal")
    assert found.flatten().tolist() == pytest.approx([50.5] * 3)
    # Of a segment smaller than k all are taken, and "equal" divides by their number, not by k.
    found = segment_topk_attention(q, k, v, [2, 1], 1.0, 2, weights="equal")
    assert found.flatten().tolist() == pytest.approx([50.5, 50.5, 3.0])


@settings(max_examples=40)
@given(LENGTHS, st.integers(1, 5), st.sampled_from([1.0, 0.5, 3.0]), st.integers(0, 999))
def test_attention_equals_dense(lengths, channels, scale, seed):
    q, k, v = draw(seed, sum(lengths), channels)
    found = segment_attention(q, k, v, lengths, scale)
    same(found, dense(q, k, v, lengths, scale), [q, k, v])


@settings(max_examples=40)
@given(
    LENGTHS,
    st.integers(1, 5),
    st.sampled_from([1.0, 3.0]),
    st.integers(1, 7),
    st.sampled_from(["softmax", "equal"]),
    st.integers(0, 999),
)
def test_topk_equals_dense(lengths, channels, scale, topk, weights, seed):
    q, k, v = draw(seed, sum(lengths), channels)
    found = segment_topk_attention(q, k, v, lengths, scale, topk, weights=weights)
    same(found, dense(q, k, v, lengths, scale, "topk", topk, weights), [q, k, v])


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), max_size=6), st.integers(1, 5), st.integers(0, 999))
def test_mean_equals_dense(lengths, channels, seed):
    x, *_ = draw(seed, sum(lengths), channels)
    found = segment_mean(x, lengths)
    assert found.shape == (len(lengths), channels)
    spread = torch.cat([found[s].expand(n, -1) for s, n in enumerate(lengths)] + [x[:0]])
    same(spread, dense(x, x, x, lengths, 1.0, "uniform"), [x])


@settings(max_examples=25)
@given(LENGTHS, st.sampled_from([1.0, 30.0]), st.integers(1, 7), st.integers(0, 999))
def test_rows_of_a_sum_to_one(lengths, scale, topk, seed):
    q, k, v = draw(seed, sum(lengths), 3)
    ones = torch.ones_like(v)
    for found in (
        segment_attention(q, k, ones, lengths, scale),
        segment_topk_attention(q, k, ones, lengths, scale, topk),
        segment_topk_attention(q, k, ones, lengths, scale, topk, weights="equal"),
    ):
        assert relative(found, ones) <= 1e-12
    mean = segment_mean(ones, [n for n in lengths if n])
    assert torch.allclose(mean, mean.new_ones(()))


@settings(max_examples=25)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 999))
def test_topk_of_all_is_attention(lengths, extra, seed):
    q, k, v = draw(seed, sum(lengths), 3)
    topk = max(lengths, default=0) + extra
    same(
        segment_topk_attention(q, k, v, lengths, 1.0, topk),
        segment_attention(q, k, v, lengths, 1.0),
        [q, k, v],
    )


def test_equal_topk_gives_no_gradient_to_the_similarity():
    q, k, v = draw(0, 6, 3)
    found = segment_topk_attention(q, k, v, [4, 2], 1.0, 2, weights="equal")
    dq, dk, dv = torch.autograd.grad(found.sum(), [q, k, v], allow_unused=True)
    assert dq is None or not dq.any()
    assert dk is None or not dk.any()
    assert dv.any()


def test_segments_do_not_see_each_other():
    q, k, v = draw(1, 7, 3)
    for attend in (
        lambda v, k: segment_attention(q, k, v, [3, 4], 1.0),
        lambda v, k: segment_topk_attention(q, k, v, [3, 4], 1.0, 2),
        lambda v, k: segment_mean(v, [3, 4]),
    ):
        first = attend(v, k)[:3] if attend(v, k).shape[0] == 7 else attend(v, k)[:1]
        dv, dk = torch.autograd.grad(first.sum(), [v, k], allow_unused=True)
        assert (dv[3:] == 0).all()
        assert (dv[:3] != 0).any()
        assert dk is None or (dk[3:] == 0).all()


def test_large_similarities_stay_finite():
    # exp(1e4) overflows: Eq. 3 must be evaluated with the row maximum subtracted.
    q, k, v = draw(2, 5, 4, torch.float32)
    for attend in (segment_attention, segment_topk_attention):
        more = () if attend is segment_attention else (3,)
        found = attend(q, k, v, [2, 3], 1e4, *more)
        assert found.isfinite().all()
        assert all(d.isfinite().all() for d in gradients(found, [q, k, v]))


@pytest.mark.parametrize("lengths", [[3], [5, 1], []])
def test_lengths_must_add_up(lengths):
    q, k, v = draw(3, 5, 2)
    with pytest.raises(ValueError):
        segment_attention(q, k, v, lengths, 1.0)
    with pytest.raises(ValueError):
        segment_topk_attention(q, k, v, lengths, 1.0, 2)


def test_topk_in_blocks(monkeypatch):
    # Large segments are worked off in blocks of query rows: here 5 x 5 pairs, two rows at
    # a time.
    from cdgc import attention as implementation

    q, k, v = draw(4, 8, 3)
    monkeypatch.setattr(implementation, "_TOPK_PAIRS", 10)
    for weights in ("softmax", "equal"):
        found = segment_topk_attention(q, k, v, [5, 1, 2], 0.5, 3, weights=weights)
        same(found, dense(q, k, v, [5, 1, 2], 0.5, "topk", 3, weights), [q, k, v])


def test_topk_is_finite_in_half_precision():
    # The terms of q kᵀ fit in float16, whose largest number is 65504; their sum, 4 * 200**2, does
    # not. The weights are those of float32.
    q = torch.full((3, 4), 200.0)
    k = q * torch.tensor([[1.0], [-1.0], [1.0]])
    v = torch.tensor([[2.0], [100.0], [6.0]])
    rows = [t.half().requires_grad_() for t in (q, k, v)]
    with torch.autocast("cpu", dtype=torch.float16):
        found = segment_topk_attention(*rows, [3], 1.0, 2)
    assert found.flatten().tolist() == [4.0, 4.0, 4.0]
    assert all(d.isfinite().all() for d in gradients(found, rows))


def test_bad_topk():
    q, k, v = draw(3, 5, 2)
    with pytest.raises(ValueError, match="0"):
        segment_topk_attention(q, k, v, [5], 1.0, 0)
    with pytest.raises(ValueError, match=r"weights must be one of.*'linear'"):
        segment_topk_attention(q, k, v, [5], 1.0, 2, weights="linear")
