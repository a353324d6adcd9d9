"""softmax="image": one softmax over the nodes of all classes, several heads, distances."""

import math

import pytest
import torch
from joint_reference import dense, joint
from reference import deviation, make_scene, relative

from cdgc import CDGCModule, class_sums, joint_attention
from cdgc.joint_attention import DistanceBias

EXACT = 1e-10  # float64


@pytest.mark.parametrize("nodes", ["coarse", "dynamic"])
@pytest.mark.parametrize(("heads", "distance_bias"), [(1, False), (2, False), (1, True), (3, True)])
@pytest.mark.parametrize("held", [1, 1 << 24])
@pytest.mark.parametrize("stored", [0, 1 << 21])
def test_equals_the_dense_form(nodes, heads, distance_bias, held, stored, monkeypatch):
    # Two images, an absent class, no padding. Recomputed blocks of one query, or all queries at
    # once; fused attention, or stored weights.
    monkeypatch.setattr(joint_attention, "_HELD", held)
    monkeypatch.setattr(joint_attention, "_STORED_CPU", stored)
    scene = make_scene(3, batch=2, channels=6, classes=4, h=3, w=4, stride=3, agree=0.5, padding=0)
    module = joint(scene, nodes=nodes, heads=heads, distance_bias=distance_bias, scale="sqrt")
    chosen = module.select(*scene.inputs[1:], valid=scene.valid)
    found, expected = module.propagate(scene.x, chosen), dense(scene, module, chosen)
    assert deviation(scene, found, expected, module) <= EXACT


def test_one_class_and_no_bias_is_attention(generator):
    # All pixels of one class, one head: softmax(q kᵀ) x W, ReLU, U, as with one softmax per class.
    x = torch.randn(1, 4, 3, 5, dtype=torch.float64, generator=generator)
    logits = torch.zeros(1, 3, 3, 5, dtype=torch.float64)
    logits[:, 1] = 1.0
    options = {"nodes": "coarse", "receivers": "all", "norm": None}
    by_class = CDGCModule(4, 3, **options).double()
    by_image = CDGCModule(4, 3, softmax="image", **options).double()
    by_image.load_state_dict(by_class.state_dict())
    torch.testing.assert_close(by_image(x, logits), by_class(x, logits))


def test_a_class_speaks_by_its_similarity():
    # φ = 0: every node gets 1/3. Class 0 = {2, 6}, class 1 = {10}, W = 1, U = 2 and 3, b = 1: every
    # pixel receives (2 + 6)/3 from class 0 and 10/3 from class 1: 2 * 8/3 + 3 * 10/3 + 1 = 49/3.
    scene = make_scene(0, 1, 1, 2, 1, 3, absent=0, padding=0, targets=False)
    scene.x = torch.tensor([[[[2.0, 6.0, 10.0]]]], dtype=torch.float64)
    scene.logits = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]], dtype=torch.float64)
    module = joint(scene)
    with torch.no_grad():
        module.phi.fill_(0.0)
        module.graph_weight.fill_(1.0)
        module.merge_weight.copy_(torch.tensor([2.0, 3.0]).reshape(2, 1, 1))
        module.merge_bias.fill_(1.0)
    found = module(scene.x, scene.logits).flatten()
    torch.testing.assert_close(found, torch.full((3,), 49 / 3, dtype=torch.float64))


def test_distance_bias_by_hand():
    # σ = 2 and o = (1, 0): a node 2 rows below has (2/2 - 1)² = 0, one 2 columns to the right has
    # (0 - 1)² + (2/2)² = 2, so their biases differ by 1.
    bias = DistanceBias(1).double()
    with torch.no_grad():
        bias.log_precision.fill_(-math.log(2.0))
        bias.offset.copy_(torch.tensor([[1.0, 0.0]]))
    places = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    nothing = torch.zeros(1, 3, 1, dtype=torch.float64)
    q, k = bias.extend(nothing, nothing, places, torch.arange(3))
    product = (q @ k.transpose(1, 2))[0, 0]
    torch.testing.assert_close(product[1] - product[2], torch.tensor(1.0, dtype=torch.float64))


def test_positions_keep_their_precision_at_97():
    # Products of positions reach 48² / σ²; float32 must not blur the attention of a narrow head.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 97, 97, generator=generator)
    logits = torch.randn(1, 2, 97, 97, generator=generator)
    options = {"nodes": "coarse", "receivers": "all", "softmax": "image", "norm": None}
    module = CDGCModule(8, 2, heads=2, distance_bias=True, **options)
    with torch.no_grad():
        exact = CDGCModule(8, 2, heads=2, distance_bias=True, **options).double()
        exact.load_state_dict(module.state_dict())
        found, expected = module(x, logits), exact(x.double(), logits.double())
    assert relative(found.double(), expected) < 1e-3


def test_padding_and_autocast():
    scene = make_scene(5, batch=2, channels=4, classes=3, h=4, w=5, stride=3, dtype=torch.float32)
    module = joint(scene, heads=2, distance_bias=True)
    x = scene.x.detach().clone()
    x[~scene.valid[:, None].expand_as(x)] = math.nan  # batch padding may hold anything
    found = module(x, scene.logits, valid=scene.valid)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(x, scene.logits, valid=scene.valid)
    assert found.isfinite().all()
    assert relative(half.float(), found) < 0.05
    # Padding receives nothing, not even through a query of zeros.
    merged = module.propagate(x, module.select(scene.logits, valid=scene.valid))
    padding = merged.movedim(1, -1)[~scene.valid]
    assert len(padding) and torch.equal(padding, module.merge_bias.expand_as(padding))


def test_autocast_leaves_float64_alone():
    scene = make_scene(5, batch=2, channels=4, classes=3, h=4, w=5, stride=3)
    module = joint(scene, heads=2, distance_bias=True)
    exact = module(scene.x, scene.logits, valid=scene.valid)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(scene.x, scene.logits, valid=scene.valid)
    assert found.dtype == torch.float64 and torch.equal(found, exact)


def test_without_nodes_every_parameter_has_a_gradient():
    scene = make_scene(1, 1, 4, 3, 2, 2, padding=0)
    module = joint(scene, heads=2, distance_bias=True)
    ignored = torch.full_like(scene.targets, scene.ignore_label)
    module(scene.x, scene.logits, ignored).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softmax": "pixel"}, "softmax must be one of"),
        ({"softmax": "image", "receivers": "nodes"}, "needs receivers='all'"),
        ({"softmax": "image", "edges": "uniform"}, "needs edges='similarity'"),
        ({"softmax": "image", "shared_phi": False}, "needs shared_phi=True"),
        ({"softmax": "image", "nodes": "soft"}, "needs nodes='coarse' or 'dynamic'"),
        ({"softmax": "image", "message_weights": "mean"}, "needs message_weights='one'"),
        ({"softmax": "image", "heads": 3}, "heads must divide in_channels 4"),
        ({"softmax": "image", "heads": 0}, "heads must divide"),
        ({"heads": 2}, "need softmax='image'"),
        ({"distance_bias": True}, "need softmax='image'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        CDGCModule(4, 3, **{"nodes": "coarse", "receivers": "all", **options})


def test_a_fused_kernel_with_wrong_gradients_is_not_used(monkeypatch):
    def wrong(grad, q, k, v, *_, **__):
        return torch.ones_like(q), torch.ones_like(k), torch.ones_like(v)

    monkeypatch.setattr(joint_attention, "_STORED_CPU", 0)
    scene = make_scene(3, batch=1, channels=4, classes=3, h=3, w=4, stride=3, padding=0)
    module = joint(scene, heads=2)
    chosen = module.select(*scene.inputs[1:], valid=scene.valid)
    class_sums.can_fuse.cache_clear()
    try:
        monkeypatch.setattr(class_sums, "_flash_backward", wrong)
        found = module.propagate(scene.x, chosen)
        assert deviation(scene, found, dense(scene, module, chosen), module) <= EXACT
    finally:
        class_sums.can_fuse.cache_clear()
