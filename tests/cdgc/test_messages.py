"""receivers="all": every pixel is a query of every class's graph."""

import pytest
import torch
from reference import build, deviation, make_scene, oracle, relative, weights_of

from cdgc import CDGCModule, messages

EXACT = 1e-10  # float64
NODES_AND_EDGES = [
    *[(n, e) for n in ("coarse", "dynamic") for e in ("similarity", "uniform", "topk")],
    ("soft", "similarity"),
]


def by_hand(**options):
    """One channel, x = 2, 6, 10 of classes 0, 0, 1; φ = 0, so that A averages; W = 1, b = 1."""
    scene = make_scene(0, 1, 1, 2, 1, 3, absent=0, padding=0, targets=False)
    scene.x = torch.tensor([[[[2.0, 6.0, 10.0]]]], dtype=torch.float64)
    scene.logits = torch.tensor([[[[3.0, 3.0, 1.0]], [[1.0, 1.0, 3.0]]]], dtype=torch.float64).log()
    module = build(scene, nodes="coarse", receivers="all", **options)
    with torch.no_grad():
        if module.phi is not None:
            module.phi.fill_(0.0)
        module.graph_weight.fill_(1.0)
        module.merge_weight.copy_(torch.tensor([2.0, 3.0]).reshape(2, 1, 1))
        module.merge_bias.fill_(1.0)
    return scene, module


@pytest.mark.parametrize("edges", ["similarity", "uniform"])
def test_by_hand(edges):
    # Class 0 sends its mean 4 times 2, class 1 its mean 10 times 3, to every pixel: 8 + 30 + 1.
    scene, module = by_hand(edges=edges)
    assert module(scene.x, scene.logits).flatten().tolist() == [39.0, 39.0, 39.0]
    # The mean over the two classes halves the messages, not the bias: 38 / 2 + 1.
    scene, module = by_hand(edges=edges, message_weights="mean")
    assert module(scene.x, scene.logits).flatten().tolist() == [20.0, 20.0, 20.0]
    # The probabilities are (3, 1)/4, (3, 1)/4 and (1, 3)/4: 3/4 * 8 + 1/4 * 30 + 1 = 14.5 and
    # 1/4 * 8 + 3/4 * 30 + 1 = 25.5.
    scene, module = by_hand(edges=edges, message_weights="probability")
    expected = torch.tensor([14.5, 14.5, 25.5], dtype=torch.float64)
    torch.testing.assert_close(module(scene.x, scene.logits).flatten(), expected)


def test_similarity_by_hand():
    # φ = ln 3, φ' = 1 and class 0 = {x = 0, 1}: the query x = 1 of class 1 has F = (0, ln 3), so
    # A = (1, 3)/4 and the message of class 0 is 3/4; class 1 holds x = 1 alone and sends 1.
    scene = make_scene(0, 1, 1, 2, 1, 3, absent=0, padding=0, targets=False)
    scene.x = torch.tensor([[[[0.0, 1.0, 1.0]]]], dtype=torch.float64)
    scene.logits = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]], dtype=torch.float64)
    module = build(scene, nodes="coarse", receivers="all")
    with torch.no_grad():
        for name, value in {"phi_prime": 1, "graph_weight": 1, "merge_weight": 1}.items():
            getattr(module, name).fill_(value)
        module.phi.fill_(torch.tensor(3.0, dtype=torch.float64).log())
        module.merge_bias.fill_(0.0)
    found = module(scene.x, scene.logits).flatten()
    torch.testing.assert_close(found, torch.tensor([1.5, 1.75, 1.75], dtype=torch.float64))


@pytest.mark.parametrize(("nodes", "edges"), NODES_AND_EDGES)
@pytest.mark.parametrize("shared_phi", [True, False])
@pytest.mark.parametrize("kept", [0, 2, 99])
def test_equals_the_dense_form(nodes, edges, shared_phi, kept, monkeypatch):
    # Two images, an absent class, padding, ignored pixels; no, some or all segments recomputed.
    monkeypatch.setattr(messages, "_KEPT_SEGMENTS", kept)
    scene = make_scene(11, batch=2, channels=6, classes=5, h=4, w=5, stride=3, agree=0.5)
    options = {
        "nodes": nodes,
        "edges": edges,
        "shared_phi": shared_phi,
        "receivers": "all",
        "topk": 2,
    }
    module = build(scene, **options)
    chosen = module.select(*scene.inputs[1:], valid=scene.valid)
    assert (chosen.counts.sum(1) == 0).any() and not scene.valid.all()
    found = module.propagate(scene.x, chosen)
    expected = oracle(scene, weights_of(module), chosen, **options)
    assert deviation(scene, found, expected, module) <= EXACT


def test_memory_does_not_grow_with_the_number_of_classes():
    # Numbers saved for the backward pass, in units of a map of features: 3 and 24 classes.
    saved = []
    for classes in (3, 24):
        scene = make_scene(1, 1, 32, classes, 12, 12, absent=0, padding=0, dtype=torch.float32)
        module = build(scene, nodes="coarse", receivers="all")
        sizes = {}

        def keep(t, sizes=sizes):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            found = module(*scene.inputs)
        parameters = sum(p.untyped_storage().nbytes() for p in module.parameters())
        saved.append((sum(sizes.values()) - parameters) / scene.x.untyped_storage().nbytes())
        found.sum().backward()
    assert saved[1] < saved[0] + 3  # one message alone is 1


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
def test_a_wrong_pixel_reaches_its_true_class(edges):
    # The pixel's own coarse class does not decide what it receives: with one segment per class, a
    # pixel moved to another class changes keys, and the message of a third class stays.
    scene = make_scene(7, batch=1, channels=3, classes=4, h=3, w=4, absent=0, padding=0)
    gated = build(scene, nodes="coarse", edges=edges)
    free = build(scene, nodes="coarse", edges=edges, receivers="all")
    own = scene.logits.argmax(1).flatten()
    for module, listens in ((gated, False), (free, True)):
        out = module(scene.x, scene.logits)[0].flatten(1)[:, 0].sum()
        grad = torch.autograd.grad(out, scene.x)[0].flatten(2).abs().sum((0, 1))
        assert bool(grad[own != own[0]].any()) is listens


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
def test_hard_positives_are_keys_in_both_settings(edges):
    scene = make_scene(5, agree=0.4)
    first, second = (
        build(scene, edges=edges, topk=2, receivers="all", hard_positives=h)
        for h in ("nodes", "keys_only")
    )
    assert torch.equal(first(*scene.inputs), second(*scene.inputs))


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
def test_one_graph_over_all_pixels_has_all_pixels_as_receivers(edges):
    scene = make_scene(9)
    first, second = (
        build(scene, scope="image", edges=edges, topk=3, receivers=r) for r in ("nodes", "all")
    )
    found, expected = (m(*scene.inputs, valid=scene.valid) for m in (second, first))
    assert relative(found, expected) <= EXACT


@pytest.mark.parametrize("edges", ["similarity", "uniform"])
def test_without_nodes_float16_does_not_overflow(edges):
    scene = make_scene(1, 1, 8, 3, 2, 2, padding=0, dtype=torch.float32)
    module = build(scene, nodes="coarse", receivers="all", edges=edges)
    with torch.no_grad():
        module.merge_weight.fill_(1000.0)  # the sum of all exceeds float16
    ignored = torch.full_like(scene.targets, scene.ignore_label)
    assert module.half()(scene.x.half(), scene.logits.half(), ignored).isfinite().all()
    module.float()
    with torch.autocast("cpu", torch.float16):
        out = module(scene.x, scene.logits, ignored)
    assert torch.equal(out, module.merge_bias[:, None, None].expand_as(out).to(out))
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_ignored_pixels_receive_and_padding_does_not():
    scene = make_scene(3, ignore=0.5, padding=0.3)
    module = build(scene, nodes="coarse", receivers="all")
    x = torch.where(scene.valid[:, None], scene.x, torch.nan)
    found = module(x, scene.logits, scene.targets, valid=scene.valid).movedim(1, -1)
    assert found.isfinite().all()
    assert torch.equal(found[~scene.valid], module.merge_bias.expand_as(found[~scene.valid]))
    ignored = (scene.targets == 255) & scene.valid
    assert ignored.any() and not torch.isclose(found[ignored], module.merge_bias).any()
    found.sum().backward()
    assert scene.x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"receivers": "everyone"}, "receivers must be one of.*everyone"),
        ({"receivers": "all", "message_weights": "half"}, "message_weights must be one of.*half"),
        ({"message_weights": "mean"}, "'mean' needs receivers='all'"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        CDGCModule(4, 3, **change)
