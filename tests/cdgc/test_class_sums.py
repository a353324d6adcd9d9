"""Sums over the nodes of each class under one softmax: the stored and the fused form."""

import logging

import pytest
import torch

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
