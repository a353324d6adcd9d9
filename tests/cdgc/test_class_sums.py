"""Sums over the nodes of each class under one softmax: the stored and the fused form."""

import logging

import pytest
import torch
from reference import relative

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


def efficient(q, k, v, *options, scale):
    """What torch's memory-efficient attention for CUDA computes, and how it lays it out."""
    assert options == (None,) * 5 + (0.0, 0, True)
    assert q.shape[3] % 8 == 0
    logits = scale * torch.einsum("bihc,bjhc->bhij", q, k)
    out = torch.einsum("bhij,bjhc->bihc", logits.softmax(3), v)
    padding = -q.shape[1] % 32  # logarithms come in blocks of 32
    log_sum = torch.nn.functional.pad(logits.logsumexp(3), (0, padding), value=torch.inf)
    return out, log_sum, *torch.zeros(2, dtype=torch.int64), q.shape[1], k.shape[1]


def efficient_backward(grad, q, k, v, bias, out, *options, scale):
    _, _, queries, keys, log_sum, _, _, _, _, _ = options
    assert (bias, queries, keys) == (None, q.shape[1], k.shape[1])
    assert log_sum.shape[2] % 32 == 0
    a = (torch.einsum("bihc,bjhc->bhij", q, k) - log_sum[:, :, :queries, None]).exp()
    d = (grad * out).sum(3).transpose(1, 2)[..., None]
    by_logit = a * (torch.einsum("bihc,bjhc->bhij", grad, v) - d)
    by_q = torch.einsum("bhij,bjhc->bihc", by_logit, k)
    by_k = torch.einsum("bhij,bihc->bjhc", by_logit, q)
    return by_q, by_k, torch.einsum("bhij,bihc->bjhc", a, grad), None


@pytest.mark.parametrize("key_channels", [2, 8])
def test_the_operators_for_cuda_are_called_as_they_expect(key_channels, monkeypatch, generator):
    monkeypatch.setattr(module, "_efficient", efficient)
    monkeypatch.setattr(module, "_efficient_backward", efficient_backward)
    monkeypatch.setitem(module._KERNELS, "cpu", module._KERNELS["cuda"])
    test_fused_equals_stored(key_channels, generator)


@pytest.mark.gpu
@pytest.mark.parametrize("key_channels", [2, 3, 35])
def test_fused_on_a_gpu_equals_stored_in_double_precision(key_channels, gpu, generator):
    assert can_fuse(gpu, torch.float32)
    counts = [600, 1, 40]
    inputs = example(2, 300, counts, key_channels, 3, generator)
    inputs = [(t.detach() * key_channels**-0.25).requires_grad_() for t in inputs]
    on_gpu = [t.detach().to(gpu, torch.float32).requires_grad_() for t in inputs]
    results = []
    for leaves, fused in ((inputs, False), (on_gpu, True)):
        out = class_sums(*leaves, counts, fused)
        loss = sum((y * (m + 1)).sin().sum() for m, y in enumerate(out))
        results.append((*out, *torch.autograd.grad(loss, leaves)))
    for stored, found in zip(*results, strict=True):
        assert relative(found.double().cpu(), stored) <= 1e-4


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
        assert can_fuse("cpu", dtype)
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
        assert not can_fuse("cpu", torch.float32)
        assert not can_fuse("cpu", torch.float32)
    (record,) = caplog.records
    assert reason in record.message
    assert "stores its attention weights" in record.message
