"""Sums over the nodes of each class under one softmax: the stored and the fused form."""

import logging
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdgc import class_sums as module
from cdgc.class_sums import can_fuse, class_sums


def example(heads, queries, counts, key_channels, channels, generator, dtype=torch.float64):
    def draw(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    n = sum(counts)
    q, k = draw(heads, queries, key_channels), draw(heads, n, key_channels)
    return q, k, draw(heads, n, channels)


def test_by_hand():
    # Logits 0 and log 3, weights 1/4 and 3/4; values 8 and 4: sums 2 and 3.
    q, k = torch.ones(1, 1, 1), torch.tensor([[[1.0], [3.0]]]).log()
    v = torch.tensor([[[8.0], [4.0]]])
    for fused in (False, True):
        found = class_sums(q, k, v, [1, 1], fused)
        torch.testing.assert_close(found, (torch.tensor([[2.0]]), torch.tensor([[3.0]])))


@pytest.mark.parametrize("key_channels", [2, 3, 7])  # values have 3, and one more in the kernel
def test_fused_equals_stored(key_channels, generator):
    # 600 nodes: more than one block of the kernel.
    counts = [600, 1, 40]
    inputs = example(2, 300, counts, key_channels, 3, generator)
    results = []
    for fused in (False, True):
        out = class_sums(*inputs, counts, fused)
        loss = sum((y * (m + 1)).sin().sum() for m, y in enumerate(out))
        results.append((*out, *torch.autograd.grad(loss, inputs)))
    for stored, found in zip(*results, strict=True):
        torch.testing.assert_close(found, stored, rtol=1e-10, atol=1e-12)


def test_fused_gradients(generator):
    inputs = example(2, 3, [2, 1], 3, 2, generator)
    assert torch.autograd.gradcheck(lambda *x: class_sums(*x, [2, 1], True), inputs)


def test_no_stored_weight_is_subnormal(generator):
    # Logits 0, -50, -90 and -200: exp(-90) is 8e-40, subnormal in float32. What is below 1e-26
    # counts as 0, so that neither sums nor gradients are subnormal.
    q = torch.ones(1, 1, 1, requires_grad=True)
    k = torch.tensor([[[0.0], [-50.0], [-90.0], [-200.0]]], requires_grad=True)
    v = torch.ones(1, 4, 1, requires_grad=True)
    assert 0 < (q @ k.transpose(1, 2)).softmax(2)[0, 0, 2] < torch.finfo(torch.float32).tiny
    sums = class_sums(q, k, v, [1, 1, 1, 1], fused=False)
    assert [s.item() for s in sums] == pytest.approx([1, math.exp(-50), 0, 0], rel=1e-5, abs=0)
    weight = torch.arange(1.0, 5.0)
    (torch.cat(sums, 1) @ weight).sum().backward()
    # dL/dlogit = a (g - sum of a g) = a (m - 1) for the node of class m: 0 for the first.
    assert k.grad.flatten().tolist() == pytest.approx([0, math.exp(-50), 0, 0], rel=1e-5, abs=1e-37)
    assert v.grad.flatten().tolist() == pytest.approx([1, 2 * math.exp(-50), 0, 0], rel=1e-5, abs=0)


@given(st.integers(0, 2**31), st.floats(0, 300))
def test_weights_that_count_as_0_change_no_sum(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = example(2, 5, [3, 4], 2, 3, generator)
    q = (spread * q.detach()).requires_grad_()
    exact = ((q @ k.transpose(1, 2)).softmax(2), v)
    wanted = torch.cat([(a @ x).transpose(0, 1).flatten(1) for a, x in zip(
        exact[0].split([3, 4], 2), v.split([3, 4], 1), strict=True)])  # fmt: skip
    found = torch.cat(class_sums(q, k, v, [3, 4], fused=False))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-20)
    toward = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    pairs = (torch.autograd.grad((y * toward).sum(), (q, k, v)) for y in (found, wanted))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-18 * (1 + spread))


def test_stored_gradients(generator):
    inputs = example(2, 3, [2, 1], 3, 2, generator)
    assert torch.autograd.gradcheck(lambda *x: class_sums(*x, [2, 1], False), inputs)


def test_a_class_that_is_never_attended_to(generator):
    # exp(-1000) is 0 in float32: its sum and all of its gradients are 0, not NaN.
    q, k, v = example(1, 4, [3, 2], 1, 2, generator, torch.float32)
    with torch.no_grad():
        q.fill_(1.0)
        k[:, 3:] = k[:, 3:].abs() - 1000
    kept, none = class_sums(q, k, v, [3, 2], True)
    (kept.sum() + none.square().sum()).backward()
    assert none.count_nonzero() == 0
    assert v.grad[:, 3:].count_nonzero() == k.grad[:, 3:].count_nonzero() == 0
    assert q.grad.isfinite().all()


@pytest.fixture
def untried():
    """The fused form has not been compared yet, as in a new process."""
    can_fuse.cache_clear()
    yield
    can_fuse.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "mode",
    [
        torch.enable_grad,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
)
def test_the_fused_form_is_usable_whatever_the_modes(untried, dtype, mode, caplog):
    state = torch.get_rng_state()
    with mode():
        assert can_fuse(dtype)
    assert torch.equal(torch.get_rng_state(), state)
    assert not caplog.records


def without_the_term_d(grad, q, k, v, outputs, *rest, **options):
    """A kernel whose backward pass takes d_i from elsewhere than from the outputs it is given."""
    return BACKWARD(grad, q, k, v, torch.zeros_like(outputs), *rest, **options)


BACKWARD = module._flash_backward


@pytest.mark.parametrize(
    ("name", "operator", "reason"),
    [
        ("_flash_backward", without_the_term_d, "relative errors"),
        ("_flash", None, "TypeError: 'NoneType' object is not callable"),
    ],
)
def test_a_changed_operator_is_not_used(
    untried, name, operator, reason, monkeypatch, caplog, generator
):
    monkeypatch.setattr(module, name, operator)
    with caplog.at_level(logging.WARNING, "cdgc"):
        assert not can_fuse(torch.float32)
        assert not can_fuse(torch.float32)
    (record,) = caplog.records
    assert reason in record.message
    assert "stores its attention weights" in record.message
