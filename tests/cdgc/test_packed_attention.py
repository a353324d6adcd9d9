"""One softmax over all classes in one launch: the bookkeeping on the CPU, the kernels on a GPU.

The operators of torch run on a GPU only. What they compute and how they lay it out is written out
here, so that everything around them is tested without one.
"""

import copy
import itertools
import logging

import pytest
import torch
from joint_reference import dense, joint
from reference import deviation, make_scene, relative

from cdgc import DEFAULT_GRAPH, CDGCModule, joint_attention, kernels, packed_attention
from cdgc.class_sums import class_sums
from cdgc.joint_attention import DistanceBias
from cdgc.messages import Segment
from cdgc.packed_attention import layout_of, packed_kernel, packed_sums

CPU = torch.device("cpu")
# Of two images; image 2 has no nodes.
SEGMENTS = [Segment(0, 0, 3), Segment(0, 1, 1), Segment(2, 1, 40), Segment(3, 0, 2)]


# ---------------------------------------------------------------- torch's operators, on the CPU
def sequences(ends_q, ends_k):
    """The rows of each sequence."""
    pairs = [ends_q.tolist(), ends_k.tolist()]
    slices = [[slice(a, b) for a, b in itertools.pairwise(p)] for p in pairs]
    return zip(*slices, strict=True)


def attend(q, k, v, ends_q, ends_k, *, scale):
    """Outputs (rows, H, W) and logarithms (H, rows)."""
    assert q.shape[2] % 8 == 0
    out, logs = torch.zeros_like(q), q.new_zeros(q.shape[1], len(q))
    for own, keys in sequences(ends_q, ends_k):
        logits = scale * torch.einsum("ihc,jhc->hij", q[own], k[keys])
        out[own] = torch.einsum("hij,jhc->ihc", logits.softmax(2), v[keys])
        logs[:, own] = logits.logsumexp(2)
    return out, logs


def differentiate(grad, q, k, v, out, logs, ends_q, ends_k, *, scale):
    by_q, by_k, by_v = (torch.zeros_like(t) for t in (q, k, v))
    for own, keys in sequences(ends_q, ends_k):
        a = (scale * torch.einsum("ihc,jhc->hij", q[own], k[keys]) - logs[:, own, None]).exp()
        d = (grad[own] * out[own]).sum(2).T[..., None]
        by_logit = scale * a * (torch.einsum("ihc,jhc->hij", grad[own], v[keys]) - d)
        by_q[own] = torch.einsum("hij,jhc->ihc", by_logit, k[keys])
        by_k[keys] = torch.einsum("hij,ihc->jhc", by_logit, q[own])
        by_v[keys] = torch.einsum("hij,ihc->jhc", a, grad[own])
    return by_q, by_k, by_v


def check_bounds(ends_q, ends_k, longest_q, longest_k):
    assert ends_q.dtype == ends_k.dtype == torch.int32
    assert (longest_q, longest_k) == (int(ends_q.diff().max()), int(ends_k.diff().max()))


def flash(q, k, v, ends_q, ends_k, longest_q, longest_k, dropout, causal, debug, *, scale):
    check_bounds(ends_q, ends_k, longest_q, longest_k)
    assert (dropout, causal, debug) == (0.0, False, False)
    return *attend(q, k, v, ends_q, ends_k, scale=scale), None, None, None


def flash_backward(grad, q, k, v, out, logs, ends_q, ends_k, *rest, scale):
    assert logs.shape == (q.shape[1], len(q))
    return differentiate(grad, q, k, v, out, logs, ends_q, ends_k, scale=scale)


def efficient(q, k, v, bias, ends_q, ends_k, longest_q, longest_k, *rest, scale):
    check_bounds(ends_q, ends_k, longest_q, longest_k)
    assert (bias, *rest) == (None, 0.0, 0, True)
    out, logs = attend(q[0], k[0], v[0], ends_q, ends_k, scale=scale)
    logs = logs.unflatten(1, (-1, longest_q)).transpose(0, 1)  # (S, H, N)
    rounded = torch.nn.functional.pad(logs, (0, -longest_q % 32), value=torch.inf)
    return out[None], rounded, None, None, longest_q, longest_k


def efficient_backward(grad, q, k, v, bias, out, ends_q, ends_k, longest, _, logs, *rest, scale):
    assert bias is None
    assert logs.is_contiguous()
    assert logs[:, :, longest:].eq(torch.inf).all()
    assert logs.shape[2] % 32 == 0
    logs = logs[:, :, :longest].transpose(0, 1).flatten(1)
    rows = (t[0] for t in (grad, q, k, v, out))
    found = differentiate(*rows, logs, ends_q, ends_k, scale=scale)
    return *(t[None] for t in found), None


def unsupported(*_, **__):
    raise RuntimeError("no such kernel")


@pytest.fixture(params=["flash", "efficient"])
def operators(request, monkeypatch, kernels_on_cpu):
    """Kernels are chosen on the CPU as on a GPU, where only one of them is at hand."""
    flashes = request.param == "flash"
    monkeypatch.setattr(packed_attention, "_flash", flash if flashes else unsupported)
    monkeypatch.setattr(packed_attention, "_flash_backward", flash_backward)
    monkeypatch.setattr(packed_attention, "_efficient", unsupported if flashes else efficient)
    monkeypatch.setattr(packed_attention, "_efficient_backward", efficient_backward)
    choice = packed_attention._choice
    compared = choice.kernel
    [own] = (k for name, k in choice.candidates.items() if request.param in name)

    def chosen(device, dtype, channels):
        # In double precision the stored form is the exact one, which no other equals.
        return own if dtype == torch.float64 else compared(device, dtype, channels)

    monkeypatch.setattr(choice, "kernel", chosen)
    return request.param


# ---------------------------------------------------------------- laws
def example(key_channels, channels, generator, dtype=torch.float64, queries=5, heads=2):
    def draw(*shape):
        rows = torch.randn(*shape, dtype=torch.float64, generator=generator)
        return rows.to(dtype).requires_grad_()

    nodes = sum(s.length for s in SEGMENTS)
    q, k = draw(3, queries, heads, key_channels), draw(nodes, heads, key_channels)
    return q, k, draw(nodes, heads, channels)


def by_image(q, k, v):
    """:func:`packed_sums` of SEGMENTS, image by image, with stored weights."""
    lengths = [s.length for s in SEGMENTS]
    rows = [(k_own, v_own) for k_own, v_own in zip(k.split(lengths), v.split(lengths), strict=True)]
    sums = {}
    for image in range(2):
        own = [s for s, segment in enumerate(SEGMENTS) if segment.image == image]
        keys, values = (torch.cat([rows[s][i] for s in own]).transpose(0, 1) for i in (0, 1))
        found = class_sums(
            q[image].transpose(0, 1), keys, values, [lengths[s] for s in own], fused=False
        )
        sums.update(zip(own, found, strict=True))
    return torch.stack([sums[s] for s in range(len(SEGMENTS))])


def results(function, inputs):
    out = function(*inputs)
    return [out, *torch.autograd.grad(out.sin().sum(), inputs)]


@pytest.mark.parametrize("key_channels", [3, 4, 9])  # values have 3, and one more in the kernel
def test_equals_the_stored_form(key_channels, operators, generator):
    inputs = example(key_channels, 3, generator)
    assert packed_kernel(CPU, torch.float32, key_channels, 3) is None  # slower than stored weights
    for dtype in (torch.bfloat16, torch.float64):
        kernel = packed_kernel(CPU, dtype, key_channels, 3)
        [name] = (n for n, k in packed_attention._choice.candidates.items() if k is kernel)
        assert operators in name
    layout = layout_of(SEGMENTS, 3, CPU)
    found = results(lambda q, k, v: packed_sums(q, k, v, layout, kernel), inputs)
    for ours, stored in zip(found, results(by_image, inputs), strict=True):
        torch.testing.assert_close(ours, stored, rtol=1e-10, atol=1e-12)
    assert found[1][2].count_nonzero() == 0  # the image without nodes


@pytest.mark.parametrize("nodes", ["coarse", "dynamic"])
@pytest.mark.parametrize(("heads", "distance_bias"), [(1, False), (3, True)])
@pytest.mark.parametrize("held", [1, 1 << 27])
def test_the_module_equals_the_dense_form(
    nodes, heads, distance_bias, held, operators, monkeypatch
):
    monkeypatch.setattr(joint_attention, "_HELD_GPU", held)  # blocks of one query, or all at once
    scene = make_scene(3, batch=2, channels=6, classes=4, h=3, w=4, stride=3, agree=0.5, padding=0)
    module = joint(scene, nodes=nodes, heads=heads, distance_bias=distance_bias)
    chosen = module.select(*scene.inputs[1:], valid=scene.valid)
    found, expected = module.propagate(scene.x, chosen), dense(scene, module, chosen)
    assert deviation(scene, found, expected, module) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_holds_the_distance_bias(dtype):
    # On a map of 97 x 97, with σ from 1/2 to 64: products reach 4 * 48², and a bias is a difference
    # of such products.
    torch.manual_seed(0)
    bias = DistanceBias(5, narrowest=0.5)
    places = torch.randint(-48, 49, (40, 2)).float()
    nothing = torch.zeros(5, 40, 1)
    products, gradients = [], []
    for kind, like in ((torch.float64, copy.deepcopy(bias).double()), (dtype, bias)):
        q, k = like.extend(nothing.to(kind), nothing.to(kind), places, torch.arange(40))
        assert q.shape[2] == 1 + like.channels(kind)
        logits = q.double() @ k.double().transpose(1, 2)
        loss = (logits * torch.linspace(-1, 1, 40).double()).sum()
        gradients.append([g.double() for g in torch.autograd.grad(loss, list(like.parameters()))])
        products.append(logits.detach())
    torch.testing.assert_close(products[1], products[0], rtol=0, atol=1e-2)
    for found, expected in zip(*reversed(gradients), strict=True):
        assert relative(found, expected) < 5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("on_gpu", [False, True])
def test_tf32_does_not_blur_the_distance_bias(on_gpu, monkeypatch):
    # TF32 keeps 10 bits after the first; a user may allow it on a GPU only.
    monkeypatch.setattr(joint_attention, "DEVICES", ("cpu",) if on_gpu else ())
    torch.manual_seed(0)
    bias = DistanceBias(5, narrowest=0.5)
    places = torch.randint(-48, 49, (40, 2)).float()
    nodes = torch.arange(40)
    q, k = bias.extend(*[torch.zeros(5, 40, 1)] * 2, places, nodes)
    exact = [
        t.double()
        for t in copy.deepcopy(bias)
        .double()
        .extend(*[torch.zeros(5, 40, 1, dtype=torch.float64)] * 2, places.double(), nodes)
    ]
    rounded = [
        torch.ldexp((m * 2**11).round() / 2**11, e) for m, e in (t.double().frexp() for t in (q, k))
    ]
    error = (rounded[0] @ rounded[1].mT - exact[0] @ exact[1].mT).abs().max()
    assert (error < 1e-2) == on_gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_heads_stay_finite_in_half_precision(dtype):
    # σ = exp(-6) would need 1/σ² = 163,000. At the edge of the largest map each pixel attends to
    # itself.
    bias = DistanceBias(2)
    with torch.no_grad():
        bias.log_precision.fill_(6.0)
        bias.offset.fill_(0.5)
    rows = torch.arange(253, 257).float()
    places = torch.cartesian_prod(rows, -rows)
    nothing = torch.zeros(2, 16, 1, dtype=dtype)
    q, k = bias.extend(nothing, nothing, places, torch.arange(16))
    attention = (q.double() @ k.double().transpose(1, 2)).softmax(2)
    torch.testing.assert_close(attention, torch.eye(16).double().expand(2, 16, 16))
    attention.sum().backward()
    assert all(p.grad.isfinite().all() for p in bias.parameters())


@pytest.mark.parametrize("without", [1, slice(None)])  # one image of three, or all of them
def test_images_without_nodes(without, operators):
    scene = make_scene(7, batch=3, channels=8, classes=3, h=4, w=5, stride=3, dtype=torch.float32)
    module = joint(scene, heads=2, distance_bias=True)
    targets = scene.targets.clone()
    targets[without] = scene.ignore_label
    x = scene.x.detach().clone()
    x[~scene.valid[:, None].expand_as(x)] = torch.nan  # batch padding may hold anything
    x.requires_grad_()
    with torch.no_grad():
        module.graph_weight.fill_(1000.0)  # the sum of all exceeds float16
    with torch.autocast("cpu", torch.float16):
        assert joint_attention.attention_dtype(x, (4, 5), 2, module.distance) == torch.float16
        nodes = module.select(scene.logits, targets, valid=scene.valid)
        out = module.propagate(x * 1e-3, nodes)
    empty = nodes.counts.sum(0) == 0
    assert empty[without].all()
    assert empty.all() == (without != 1)
    assert torch.equal(out[empty], module.merge_bias[:, None, None].expand_as(out[empty]))
    gradients = torch.autograd.grad(out.sum(), [x, *module.parameters()])
    assert all(t.isfinite().all() for t in (out, *gradients))
    assert gradients[0][empty].count_nonzero() == 0


def test_autocast_computes_in_half_precision_where_a_kernel_can(operators):
    scene = make_scene(5, batch=2, channels=8, classes=3, h=4, w=5, stride=3, dtype=torch.float32)
    module = joint(scene, heads=2, distance_bias=True)
    full = module(scene.x, scene.logits, valid=scene.valid)
    args = (scene.x, (4, 5), 2, module.distance)
    assert joint_attention.attention_dtype(*args) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert joint_attention.attention_dtype(*args) == torch.bfloat16
        wide = (scene.x, (4, 513), 2, module.distance)  # positions beyond 256 are rounded
        assert joint_attention.attention_dtype(*wide) == torch.float32
        with torch.autocast("cpu", torch.float16):
            assert joint_attention.attention_dtype(*args) == torch.float16
            assert joint_attention.attention_dtype(*wide) == torch.float32  # squares beyond 65504
        half = module(scene.x, scene.logits, valid=scene.valid)
        with kernels.loop_only():
            assert joint_attention.attention_dtype(*args) == torch.float32
            stored = module(scene.x, scene.logits, valid=scene.valid)
    assert half.dtype == stored.dtype == full.dtype
    assert 0 < relative(half, full) < 0.05


def test_a_wrong_operator_is_not_used(kernels_on_cpu, monkeypatch, caplog):
    def without_d(grad, q, k, v, out, *rest, **options):
        return flash_backward(grad, q, k, v, torch.zeros_like(out), *rest, **options)

    monkeypatch.setattr(packed_attention, "_flash", flash)
    monkeypatch.setattr(packed_attention, "_flash_backward", without_d)
    monkeypatch.setattr(packed_attention, "_efficient", None)
    with caplog.at_level(logging.INFO, "cdgc"):
        assert packed_kernel(CPU, torch.bfloat16, 11, 8) is None
    (message,) = caplog.messages
    assert "stored weights; not used: flash attention: relative errors" in message
    assert "memory-efficient attention: TypeError: 'NoneType' object is not callable" in message


def test_without_a_gpu_no_kernel_is_looked_for(caplog):
    with caplog.at_level(logging.DEBUG, "cdgc"):
        assert packed_kernel(CPU, torch.bfloat16, 11, 8) is None
    assert not caplog.messages


# ---------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.parametrize("kernel", packed_attention._choice.candidates.items(), ids=lambda k: k[0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [8, 64])
def test_kernels_on_a_gpu_equal_double_precision(kernel, dtype, channels, gpu, generator):
    _, kernel = kernel
    if gpu == "cpu":
        pytest.skip("a CPU has no such kernels")
    inputs = example(channels + 3, channels, generator, dtype, queries=70)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    inputs = [t.detach().to(gpu).requires_grad_() for t in inputs]
    layout = layout_of(SEGMENTS, 3, torch.device(gpu))
    found = results(lambda q, k, v: packed_sums(q, k, v, layout, kernel), inputs)
    for ours, stored in zip(found, results(by_image, exact), strict=True):
        assert relative(ours.double().cpu(), stored) < 5 * torch.finfo(dtype).eps


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [9, 65])
def test_default_graph_on_a_gpu(dtype, side, gpu, generator, caplog):
    # Against double precision, learning the widths and offsets of another graph.
    torch.manual_seed(0)
    exact = CDGCModule(64, 5, norm=None, **DEFAULT_GRAPH).double()
    other, module = copy.deepcopy(exact), copy.deepcopy(exact).float().to(gpu)
    with torch.no_grad():
        other.distance.log_precision += 0.3
        other.distance.offset += 0.2
    x = torch.randn(2, 64, side, side, dtype=torch.float64, generator=generator)
    x = 3 * torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    logits = torch.randn(2, 5, 1 + side // 4, 1 + side // 4, generator=generator)
    logits = torch.nn.functional.interpolate(logits, size=(side, side), mode="nearest")
    goal = other(x, logits.double()).detach()
    found = []
    for graph, kind in ((exact, torch.float64), (module, torch.float32)):
        device = next(graph.parameters()).device
        own = x.to(device, kind, copy=True).requires_grad_()
        half = kind != torch.float64 and dtype != torch.float32
        with torch.autocast(device.type, dtype if half else torch.bfloat16, enabled=half), \
                caplog.at_level(logging.INFO, "cdgc"):  # fmt: skip
            out = graph(own, logits.to(device, kind))
        (out - goal.to(out)).square().sum().backward()
        parameters = (graph.graph_weight, graph.distance.log_precision, graph.distance.offset)
        found.append([out.detach(), own.grad, *(p.grad for p in parameters)])
    pairs = zip(*found, strict=True)
    errors = [relative(ours.double().cpu(), expected) for expected, ours in pairs]
    print(*caplog.messages, [f"{e:.1e}" for e in errors], sep="\n")
    # Rounding turns values at 0 on or off, which changes their gradients.
    assert max(errors) < (0.01 if dtype == torch.float32 else 0.15)
