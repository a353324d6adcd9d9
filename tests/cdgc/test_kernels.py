"""Kernels for all segments at once, and how one is chosen (cdgc.kernels).

Only the kernels' own arithmetic needs a GPU. Their bookkeeping runs on the CPU, where nested
tensors and grouped products exist too, and a stand-in takes the place of flash attention.
"""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import build, make_scene, relative

from cdgc import attention, class_linear, grouped_linear, kernels, segment_attention
from cdgc.kernels import KernelChoice, Lengths, loop_only, segment_ends

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any)
# torch's remark on the layout that its own CPU path for nested tensors uses
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")


def rows(seed, lengths, channels=8):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(sum(lengths), channels, generator=g).requires_grad_() for _ in range(3)]


def gradients(y, leaves):
    probe = torch.linspace(-1, 1, y.numel()).view_as(y).to(y)
    return torch.autograd.grad(y, leaves, probe)


def same(found, expected, leaves, limit=1e-5):
    assert relative(found, expected) <= limit
    pairs = zip(gradients(found, leaves), gradients(expected, leaves), strict=True)
    assert max(relative(a, b) for a, b in pairs) <= limit


@pytest.fixture
def varlen(monkeypatch):
    """A stand-in for torch's varlen_attn, and the calls that it received."""
    calls = []

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert query.shape[1] == 1  # (rows, heads, channels)
        calls.append((cu_seq_q.tolist(), cu_seq_k.tolist(), max_q, max_k))
        bounds = list(zip(cu_seq_q.tolist()[:-1], cu_seq_q.tolist()[1:], strict=True))
        parts = []
        for begin, end in bounds:
            q, k, v = (t[begin:end, 0] for t in (query, key, value))
            parts.append(((q @ k.t() * scale).softmax(1) @ v)[:, None])
        return torch.cat(parts)

    module = SimpleNamespace(varlen_attn=varlen_attn)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    return calls


# ---------------------------------------------------------------- bookkeeping of the kernels
def test_segment_ends_by_hand():
    cpu = torch.device("cpu")
    assert segment_ends([2, 0, 3], cpu).tolist() == [2, 2, 5]
    assert segment_ends([2, 3], cpu, start=True).tolist() == [0, 2, 5]
    with torch.device("meta"):  # whatever the default device is
        assert segment_ends([2], cpu).dtype == torch.int32


def test_varlen_gets_the_bounds_of_the_segments_that_have_rows(varlen):
    q, k, v = rows(0, [2, 0, 3])
    same(
        attention._varlen_attention(q, k, v, [2, 0, 3], 0.5),
        attention._attention_loop(q, k, v, [2, 0, 3], 0.5),
        [q, k, v],
    )
    assert varlen == [([0, 2, 5], [0, 2, 5], 3, 3)]


@settings(max_examples=15, deadline=None)
@given(LENGTHS, st.sampled_from([1.0, 0.5]), st.integers(0, 99))
def test_nested_tensors_equal_the_loop(lengths, scale, seed):
    leaves = rows(seed, lengths)
    same(
        attention._jagged_attention(*leaves, lengths, scale),
        attention._attention_loop(*leaves, lengths, scale),
        leaves,
    )


@settings(max_examples=15, deadline=None)
@given(LENGTHS, st.integers(0, 99))
def test_the_grouped_product_equals_the_loop(lengths, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lengths), 8, generator=g).requires_grad_()
    weight = torch.randn(len(lengths), 8, 16, generator=g).requires_grad_()
    same(
        grouped_linear._grouped(x, weight, lengths),
        grouped_linear._loop(x, weight, lengths),
        [x, weight],
    )
    absent = [m for m, n in enumerate(lengths) if not n]
    (grad,) = torch.autograd.grad(grouped_linear._grouped(x, weight, lengths).sum(), weight)
    assert not grad[absent].any()


def test_more_classes_than_a_grouped_product_takes(kernels_on_cpu, monkeypatch):
    def refuse(x, weight, *, offs):
        assert len(offs) < 1024, "Can't process more than 1024 groups"  # as on a GPU
        return original(x, weight, offs=offs)

    original = torch.nn.functional.grouped_mm
    monkeypatch.setattr("torch.nn.functional.grouped_mm", refuse)
    x = torch.randn(6, 8)
    for classes in (1023, 1024, 1203):
        weight = torch.randn(classes, 8, 8).requires_grad_()
        lengths = [0] * classes
        lengths[0], lengths[-1] = 2, 4
        found = class_linear(x, weight, lengths)
        expected = torch.cat([x[:2] @ weight[0], x[2:] @ weight[-1]])
        same(found, expected, [weight])


def test_lengths_are_sent_once_for_all_products(monkeypatch, kernels_on_cpu):
    sent = []

    def to_device(numbers, *rest):
        sent.append(list(numbers))
        return original(numbers, *rest)

    original = kernels.to_device
    x, weight = torch.randn(6, 8).requires_grad_(), torch.randn(4, 8, 8).requires_grad_()
    class_linear(x, weight, [2, 0, 3, 1])  # the kernel is chosen
    monkeypatch.setattr(kernels, "to_device", to_device)
    lengths = Lengths([2, 0, 3, 1])
    class_linear(class_linear(x, weight, lengths), weight, lengths).sum().backward()
    assert sent == [[2, 2, 5, 6], [1]]  # the ends of the segments, and those without rows
    assert not weight.grad[1].any()


# ---------------------------------------------------------------- the choice
def double(x, _):
    return 2 * x


def example(lengths, channels):
    return [torch.linspace(-1, 1, sum(lengths) * channels[0]).double().view(-1, channels[0])]


def wrong_forward(x, _):
    return 2 * x + 0.01


def wrong_backward(x, _):
    return x + x.detach()


def not_finite(x, _):
    return 2 * x / (x.detach() > x.detach().min())


def unsupported(x, _):
    raise RuntimeError("expected another dtype\nand more")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (wrong_forward, "relative errors "),
        (wrong_backward, "relative errors "),
        (not_finite, "relative errors inf"),
        (unsupported, "RuntimeError: expected another dtype;"),
    ],
)
def test_a_kernel_that_is_wrong_is_not_used(bad, reason, kernels_on_cpu, caplog):
    def good(x, lengths):
        return double(x, lengths)

    choice = KernelChoice("Doubling", double, {"bad": bad, "good": good}, example)
    with caplog.at_level(logging.INFO, logger="cdgc"):
        assert choice(torch.ones(3, 4)) is good
        assert choice(torch.ones(5, 4)) is good
    [message] = caplog.messages  # compared once, and said so
    assert message.startswith(
        "Doubling on cpu, torch.float32, channels (4,): good; not used: bad: "
    )
    assert reason in message + ";"
    assert KernelChoice("Doubling", double, {"bad": bad}, example)(torch.ones(3, 4)) is double


def test_every_dtype_and_width_is_compared_by_itself(kernels_on_cpu):
    def only_wide(x, lengths):
        if x.shape[1] < 8 or x.dtype == torch.bfloat16:
            raise NotImplementedError("narrow")
        return double(x, lengths)

    choice = KernelChoice("Doubling", double, {"wide": only_wide}, example)
    assert choice(torch.ones(3, 4)) is double
    assert choice(torch.ones(3, 8)) is only_wide
    assert choice(torch.ones(3, 8, dtype=torch.bfloat16)) is double


def test_half_precision_is_held_to_the_error_of_the_loop(kernels_on_cpu):
    # In bfloat16 the loop itself is off by about 2^-9; a kernel of single precision is better, one
    # with a further rounding of 2^-4 is not good enough.
    def exact(x, lengths):
        return (2 * x.float()).to(x.dtype)

    def coarse(x, lengths):
        return 2 * x + x.detach() / 16

    x = torch.ones(3, 4, dtype=torch.bfloat16)
    assert KernelChoice("Doubling", double, {"exact": exact}, example)(x) is exact
    assert KernelChoice("Doubling", double, {"coarse": coarse}, example)(x) is double


def test_the_loop_runs_on_the_cpu_and_where_asked_for(kernels_on_cpu, monkeypatch):
    def good(x, lengths):
        return double(x, lengths)

    choice = KernelChoice("Doubling", double, {"good": good}, example)
    with loop_only():
        assert choice(torch.ones(3, 4)) is double
    torch.use_deterministic_algorithms(True)
    try:
        assert choice(torch.ones(3, 4)) is double
    finally:
        torch.use_deterministic_algorithms(False)
    assert choice(torch.ones(3, 4)) is good
    monkeypatch.setattr(kernels, "DEVICES", ("cuda",))
    assert choice(torch.ones(3, 4)) is double


def test_the_comparison_leaves_no_trace(kernels_on_cpu):
    # Neither the random state nor the grad mode of the step in which it happens changes.
    before = torch.get_rng_state()
    q, k, v = (t.detach() for t in rows(0, [2, 3]))
    with torch.inference_mode():
        out = segment_attention(q, k, v, [2, 3])
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert not out.requires_grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stand_in", [True, False])
def test_the_module_equals_its_loop_form(training, stand_in, kernels_on_cpu, request, caplog):
    calls = request.getfixturevalue("varlen") if stand_in else []
    scene = make_scene(3, batch=2, channels=8, classes=5, h=9, w=9, dtype=torch.float32)
    module = build(scene, nodes="dynamic", edges="similarity").train(training)
    leaves = [scene.x, *module.parameters()] if training else [scene.x]
    with torch.set_grad_enabled(training), caplog.at_level(logging.INFO, logger="cdgc"):
        found = module(*scene.inputs)
    assert bool(calls) == stand_in
    chosen = "varlen_attn" if stand_in else "nested tensors"
    assert any(f"channels (8, 8, 8): {chosen}" in message for message in caplog.messages)
    assert any("channels (8, 8): grouped_mm" in message for message in caplog.messages)
    with torch.set_grad_enabled(training), loop_only():
        expected = module(*scene.inputs)
    if training:
        same(found, expected, leaves, 1e-4)
    else:
        assert relative(found, expected) <= 1e-5


def test_autocast_casts_once_for_every_kernel(kernels_on_cpu):
    q, k, v = rows(0, [2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = segment_attention(q, k, v, [2, 3])
        with loop_only():
            expected = segment_attention(q, k, v, [2, 3])
    assert found.dtype == expected.dtype == torch.bfloat16
    assert relative(found.float(), expected.float()) < 0.02


# ---------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [64, 128, 256, 512])
def test_chosen_kernels_on_a_gpu(dtype, channels, gpu, caplog):
    limit = 1e-4 if dtype == torch.float32 else 0.03
    lengths = [3000, 1, 0, 700, 64] if gpu == "cuda" else [30, 1, 0, 7, 2]
    g = torch.Generator().manual_seed(0)
    leaves = [torch.randn(sum(lengths), channels, generator=g) for _ in range(3)]
    leaves = [t.to(gpu, dtype).requires_grad_() for t in leaves]
    weight = torch.randn(5, channels, channels, generator=g).mul(channels**-0.5)
    weight = weight.to(gpu, dtype).requires_grad_()
    with caplog.at_level(logging.INFO, logger="cdgc"):
        found = segment_attention(*leaves, lengths, channels**-0.5)
        product = class_linear(leaves[0], weight, lengths)
    print(*caplog.messages, sep="\n")
    with loop_only():
        expected = segment_attention(*leaves, lengths, channels**-0.5)
        expected_product = class_linear(leaves[0], weight, lengths)
    same(found.float(), expected.float(), leaves, limit)
    same(product.float(), expected_product.float(), [leaves[0], weight], limit)
