"""Devices, dtypes, compilation, tracing and waits for the device."""

import copy
import warnings

import pytest
import torch
from reference import build, make_scene, relative

from cdgc import (
    CDGCModule,
    class_linear,
    cross_entropy,
    segment_attention,
    select_nodes,
)

X, LOGITS = torch.zeros(2, 4, 3, 5), torch.zeros(2, 3, 3, 5)
TARGETS, VALID = torch.zeros(2, 17, 33, dtype=torch.int64), torch.ones(2, 3, 5, dtype=torch.bool)


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize("name", ["x", "coarse_logits", "targets", "valid"])
def test_another_device_is_refused(name):
    # The meta device takes the place of a GPU: the check must come before any computation.
    good = {"x": X, "coarse_logits": LOGITS, "targets": TARGETS, "valid": VALID}
    with pytest.raises(ValueError, match="meta") as error:
        CDGCModule(4, 3)(**{**good, name: good[name].to("meta")})
    assert name in str(error.value)
    assert "cpu" in str(error.value)


def test_maps_on_two_devices_are_refused():
    coarse = torch.zeros(1, 2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"target_map is on meta.*cpu"):
        select_nodes(coarse, coarse.to("meta"), num_classes=2)


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_another_dtype_is_refused(edges, dtype):
    with pytest.raises(ValueError, match=f"x is {dtype}, expected torch.float32"):
        CDGCModule(4, 3, edges=edges).eval()(X.to(dtype), LOGITS)


def test_rows_of_two_dtypes_are_refused():
    rows = torch.zeros(4, 2)
    with pytest.raises(ValueError, match=r"v is torch\.float64"):
        segment_attention(rows, rows, rows.double(), [4])
    with pytest.raises(ValueError, match=r"weight torch\.float64"):
        class_linear(rows, torch.zeros(1, 2, 2, dtype=torch.float64), [4])


def test_losses_refuse_two_devices():
    with pytest.raises(ValueError, match="targets is on meta"):
        cross_entropy(LOGITS, TARGETS.to("meta"))
    with pytest.raises(ValueError, match="class_weights is on meta"):
        cross_entropy(LOGITS, TARGETS, class_weights=torch.ones(3, device="meta"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["x", "coarse_logits"])
def test_finite_input_is_checked_when_asked(name, bad):
    good = {"x": X.clone(), "coarse_logits": LOGITS.clone()}
    good[name][1, 2, 0, 3] = bad
    CDGCModule(4, 3).eval()(**good)  # not looked at by default
    with pytest.raises(ValueError, match=rf"{name}: 1 of \d+ values are NaN or infinite"):
        CDGCModule(4, 3, check_finite=True).eval()(**good)
    CDGCModule(4, 3, check_finite=True)(X, LOGITS, TARGETS)


# ---------------------------------------------------------------- compiler, host and device
def test_tracing_is_refused():
    module = CDGCModule(4, 3).eval()
    message = "CDGCModule cannot be traced or exported.*cdgcnet export"
    with pytest.raises(RuntimeError, match=message):
        torch.jit.trace(module, (X, LOGITS))

    def parts(x, logits):  # as a network calls them
        return module.propagate(x, module.select(logits))

    with pytest.raises(RuntimeError, match=message):
        torch.jit.trace(parts, (X, LOGITS))
    module(X, LOGITS)


@pytest.mark.parametrize("strict", [False, True])
def test_exporting_is_refused(strict):
    module = CDGCModule(4, 3).eval()
    with pytest.raises(Exception, match="cdgcnet export"):  # strict wraps it in an error of its own
        torch.export.export(module, (X, LOGITS), strict=strict)


@pytest.mark.parametrize("edges", ["similarity", "uniform"])
def test_compilation_breaks_only_at_the_module(edges):
    # Other class maps must not be compiled again: select and propagate stay out of the graphs.
    scene = make_scene(2, batch=2, channels=8, classes=5, h=9, w=9, dtype=torch.float32)
    module = build(scene, edges=edges)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x, *rest: module(x * 2, *rest) + 1, backend=count)
    found = []
    for seed in range(4):
        other = make_scene(seed, batch=2, channels=8, classes=5, h=9, w=9, dtype=torch.float32)
        with torch.no_grad():
            y = compiled(scene.x, *other.inputs[1:])
            assert torch.equal(y, module(scene.x * 2, *other.inputs[1:]) + 1)
        found.append(len(graphs))
    assert found == [found[0]] * 4
    assert found[0] == 2  # before the module, and after it


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("nodes", "edges"),
    [("dynamic", "similarity"), ("dynamic", "uniform"), ("soft", "similarity")],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_host_waits_once(nodes, edges, training, gpu):
    scene = make_scene(3, batch=2, channels=8, classes=5, h=9, w=9, dtype=torch.float32)
    module = build(scene, nodes=nodes, edges=edges).train(training).to(gpu)
    x = scene.x.detach().to(gpu).requires_grad_()
    logits, targets, valid = (t.to(gpu) for t in (scene.logits, scene.targets, scene.valid))
    module(x, logits, targets, valid=valid).sum().backward()
    if gpu == "cpu":
        pytest.skip("a CPU has no device to wait for")
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            module(x, logits, targets, valid=valid).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    assert len(waits) == 1, [str(w.message) for w in waits]


PATHS = [
    {"nodes": nodes, "edges": edges, "receivers": receivers}
    for nodes, edges in (
        ("coarse", "similarity"),
        ("dynamic", "similarity"),
        ("dynamic", "uniform"),
        ("dynamic", "topk"),
        ("soft", "similarity"),
    )
    for receivers in ("nodes", "all")
] + [
    {"nodes": "coarse", "receivers": "all", "softmax": "image", "heads": 2, "distance_bias": True},
    {"nodes": "dynamic", "hard_positives": "keys_only"},
    {"scope": "image"},
]


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("options", PATHS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_path_equals_double_precision_on_the_cpu(options, device, request):
    # Other tests compare that one with the oracle.
    if device == "gpu":
        device = request.getfixturevalue("gpu")
    scene = make_scene(3, batch=2, channels=8, classes=5, h=9, w=9)
    exact = build(scene, **options)
    module = copy.deepcopy(exact).float().to(device)
    x, logits, targets = scene.inputs
    leaves = [x.detach().requires_grad_(), x.detach().float().to(device).requires_grad_()]
    outputs, gradients = [], []
    for leaf, graph in zip(leaves, (exact, module), strict=True):
        like = {"dtype": leaf.dtype, "device": leaf.device}
        valid = scene.valid.to(leaf.device)
        out = graph(leaf, logits.to(**like), targets.to(leaf.device), valid=valid)
        outputs.append(out)
        parameters = [leaf, *graph.parameters()]
        probe = torch.linspace(-1, 1, out.numel()).to(**like).view_as(out)
        gradients.append(torch.autograd.grad(out, parameters, probe))
    assert relative(outputs[1].double().cpu(), outputs[0]) <= 1e-4
    for found, expected in zip(*reversed(gradients), strict=True):
        assert relative(found.double().cpu(), expected) <= 1e-3
