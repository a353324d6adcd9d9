"""CDGCModule (Fig. 3): ragged = dense, the laws of spec section 2, gradients, bad input."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    DEFAULTS,
    PARTS,
    build,
    deviation,
    make_scene,
    oracle,
    relative,
    sets_from,
    weights_of,
)
from torch import nn

from cdgc import DEFAULT_GRAPH, CDGCModule, class_map

EXACT = 1e-10  # float64
PARAMETERS = ("phi", "phi_prime", "graph_weight", "merge_weight", "merge_bias")
SUBSETS = [PARTS, PARTS[:1], PARTS[1:2], PARTS[2:], PARTS[:2], PARTS[1:], (PARTS[0], PARTS[2])]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@st.composite
def scenes(draw, **fixed):
    """All the corners: empty classes, one class, one pixel, ignore, padding, batches, strides."""
    drawn = {
        "seed": draw(st.integers(0, 2**16)),
        "batch": draw(st.integers(1, 3)),
        "channels": draw(st.integers(1, 6)),
        "classes": draw(st.integers(1, 5)),
        "h": draw(st.integers(1, 4)),
        "w": draw(st.integers(1, 5)),
        "absent": draw(st.integers(0, 4)),
        "agree": draw(st.sampled_from([0.0, 0.6, 1.0])),
        "ignore": draw(st.sampled_from([0.0, 0.2, 1.0])),
        "padding": draw(st.sampled_from([0.0, 0.3])),
    }
    if "stride" not in fixed:
        drawn["stride"] = draw(st.sampled_from([1, 3]))
    scene = make_scene(**{**drawn, **fixed})
    # Every stride-th pixel is right for aligned corners only; at equal sizes the two are one.
    corners = draw(st.booleans()) if {**drawn, **fixed}["stride"] == 1 else True
    return replace(scene, align_corners=corners)


NODES_AND_EDGES = [
    (nodes, edges) for nodes in ("coarse", "dynamic") for edges in ("similarity", "uniform", "topk")
] + [("soft", "similarity")] * 2


def options_of(drawn):
    """Split the pairs: soft nodes need similarity edges, message weights need all receivers."""
    drawn["nodes"], drawn["edges"] = drawn.pop("nodes_and_edges")
    if drawn["receivers"] != "nodes":
        drawn.update(message_weights=drawn["receivers"], receivers="all")
    return drawn


OPTIONS = st.fixed_dictionaries(
    {
        "nodes_and_edges": st.sampled_from(NODES_AND_EDGES),
        "scope": st.sampled_from(["class", "class", "class", "image"]),
        "easy_ratio": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "samples": st.sampled_from(SUBSETS),
        "hard_positives": st.sampled_from(["nodes", "keys_only"]),
        "receivers": st.sampled_from(["nodes", "one", "mean", "probability"]),
        "topk": st.integers(1, 6),
        "topk_weights": st.sampled_from(["softmax", "equal"]),
        "scale": st.sampled_from([1.0, 0.25, "sqrt"]),
        "shared_phi": st.booleans(),
    }
).map(lambda drawn: options_of(dict(drawn)))


# ---------------------------------------------------------------- ragged = dense
@settings(max_examples=120)
@given(scenes(), OPTIONS, st.booleans(), st.booleans())
def test_equals_the_dense_form(scene, options, training, with_targets):
    if not with_targets and not (training and options["nodes"] == "dynamic"):
        scene = replace(scene, targets=None)
    module = build(scene, **options).train(training)
    found = module(*scene.inputs, valid=scene.valid, generator=seeded(5))
    nodes = module.select(*scene.inputs[1:], valid=scene.valid, generator=seeded(5))
    expected = oracle(scene, weights_of(module), nodes, training, **options)
    assert deviation(scene, found, expected, module) <= EXACT


@pytest.mark.parametrize(("nodes", "edges"), NODES_AND_EDGES[:-1])
@pytest.mark.parametrize("shared_phi", [True, False])
def test_equals_the_dense_form_on_a_full_scene(edges, nodes, shared_phi):
    # Not left to the draw: every part of Eq. 4, two images, an absent class, padding, ignore.
    scene = make_scene(11, batch=2, channels=6, classes=5, h=4, w=5, stride=3, agree=0.5)
    options = {
        "edges": edges,
        "nodes": nodes,
        "shared_phi": shared_phi,
        "easy_ratio": 0.5,
        "topk": 2,
    }
    module = build(scene, **options)
    chosen = module.select(*scene.inputs[1:], valid=scene.valid, generator=seeded())
    if nodes != "soft":
        assert chosen.easy_positive.sum() > 0
        assert chosen.hard_negative.sum() > 0
        assert (chosen.hard_positive.sum() > 0) == (nodes == "dynamic")
    assert (chosen.counts.sum(1) == 0).any()
    assert (scene.targets == 255).any()
    found = module.propagate(scene.x, chosen)
    expected = oracle(scene, weights_of(module), chosen, **options)
    assert deviation(scene, found, expected, module) <= EXACT


@settings(max_examples=40)
@given(scenes(), OPTIONS, st.booleans())
def test_without_gradients_equals_the_dense_form(scene, options, training):
    # Without gradients the segments are processed one after the other.
    module = build(scene, **options).train(training)
    nodes = module.select(*scene.inputs[1:], valid=scene.valid, generator=seeded(5))
    with torch.no_grad():
        found = module.propagate(scene.x, nodes)
        expected = oracle(scene, weights_of(module), nodes, training, **options)
    assert relative(found, expected) <= EXACT


def test_by_hand():
    # One channel, pixels x = 2, 4, 10; classes 0 0 1. W = (1, -1), U = (3, 5), b = 7, uniform.
    # Class 0: mean 3, ReLU(3 * 1) = 3, times 3 plus 7 = 16. Class 1: ReLU(10 * -1) = 0: b alone.
    scene = make_scene(0, 1, 1, 2, 1, 3, absent=0, padding=0, targets=False)
    scene.x = torch.tensor([[[[2.0, 4.0, 10.0]]]], dtype=torch.float64)
    scene.logits = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]], dtype=torch.float64)
    module = build(scene, edges="uniform", nodes="coarse")
    with torch.no_grad():
        module.graph_weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1))
        module.merge_weight.copy_(torch.tensor([3.0, 5.0]).reshape(2, 1, 1))
        module.merge_bias.fill_(7.0)
    assert module(scene.x, scene.logits).flatten().tolist() == [16.0, 16.0, 7.0]
    # Dynamic, target 0 1 1: pixel 1 is class 0's hard negative and class 1's hard positive.
    # Class 1: mean (4 + 10) / 2 = 7; W_1 = 1 now: ReLU 7, times 5. Pixel 1: 3*3 + 7*5 + 7 = 51.
    module = build(scene, edges="uniform", nodes="dynamic")
    with torch.no_grad():
        module.graph_weight.fill_(1.0)
        module.merge_weight.copy_(torch.tensor([3.0, 5.0]).reshape(2, 1, 1))
        module.merge_bias.fill_(7.0)
    targets = torch.tensor([[[0, 1, 1]]])
    assert module(scene.x, scene.logits, targets).flatten().tolist() == [16.0, 51.0, 42.0]


def test_similarity_by_hand():
    # phi = 1, phi' = ln 3, x = (0, 1) of one class: row 0 has F = (0, 0): mean 1/2; row 1 has
    # F = (0, ln 3): A = (1, 3) / 4, so 3/4. W = 4, U = 1, b = 0. Scale 2 turns 3 into 9: 9/10.
    scene = make_scene(0, 1, 1, 1, 1, 2, padding=0, targets=False)
    scene.x = torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64)
    for scale, second in ((1.0, 3.0), (2.0, 3.6), ("sqrt", 3.0)):  # C = 1: sqrt is 1
        module = build(scene, nodes="coarse", scale=scale)
        with torch.no_grad():
            for name, value in zip(
                PARAMETERS, (1, torch.tensor(3.0, dtype=torch.float64).log(), 4, 1, 0), strict=True
            ):
                getattr(module, name).fill_(value)
        assert module(scene.x, scene.logits).flatten().tolist() == pytest.approx([2.0, second])


def test_soft_by_hand():
    # One channel, x = 2, 6; probabilities (3, 1) / 4 and (1, 3) / 4, phi = 0: all F = 0.
    # Class 0: A = (3/4, 1/4) for both, A x = 3; W = 1, U = 2: 6. Class 1: 1/4 * 2 + 3/4 * 6 = 5,
    # W = 1, U = 4: 20. With b = 1: 3/4 * 6 + 1/4 * 20 + 1 = 10.5 and 1/4 * 6 + 3/4 * 20 + 1 = 17.5.
    scene = make_scene(0, 1, 1, 2, 1, 2, absent=0, padding=0, targets=False)
    scene.x = torch.tensor([[[[2.0, 6.0]]]], dtype=torch.float64)
    scene.logits = torch.tensor([[[[3.0, 1.0]], [[1.0, 3.0]]]], dtype=torch.float64).log()
    module = build(scene, nodes="soft")
    with torch.no_grad():
        module.phi.fill_(0.0)
        module.graph_weight.fill_(1.0)
        module.merge_weight.copy_(torch.tensor([2.0, 4.0]).reshape(2, 1, 1))
        module.merge_bias.fill_(1.0)
    for training in (True, False):
        found = module.train(training)(scene.x, scene.logits).flatten()
        torch.testing.assert_close(found, torch.tensor([10.5, 17.5], dtype=torch.float64))


@settings(max_examples=15)
@given(scenes(), st.booleans())
def test_soft_nodes_of_sure_predictions_are_coarse_nodes(scene, training):
    options = {"scale": "sqrt", "edges": "similarity"}
    sure = 1e6 * scene.logits  # probabilities of 1 and 0
    soft = build(scene, **options, nodes="soft").train(training)
    coarse = build(scene, **options, nodes="coarse").train(training)
    found = soft(scene.x, sure, scene.targets, valid=scene.valid)
    assert relative(found, coarse(scene.x, sure, scene.targets, valid=scene.valid)) <= EXACT


@pytest.mark.parametrize("gap", [50.0, 103.0, 1e4, 3e38])
def test_a_share_of_zero_is_no_node(gap):
    # e**-103 is the smallest number that float32 still holds (in its last bit); a segment of
    # nothing but log 0 would be NaN in some kernels.
    logits = torch.zeros(1, 3, 2, 3)
    logits[:, 1] = gap
    nodes = CDGCModule(4, 3, nodes="soft").select(logits)
    assert len(nodes.pixel) == (12 if gap <= 103 else 6)
    assert nodes.log_weight.half().isfinite().all()


def test_shares_reach_the_attention_aligned_and_stored_once(monkeypatch):
    # CUDA's kernels refuse a mask that does not begin at a multiple of 16 bytes.
    scene = make_scene(11, channels=4, classes=5, h=5, w=7, absent=0, dtype=torch.float32)
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **options):
        seen.append(attn_mask)
        return original(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    build(scene, nodes="soft")(*scene.inputs)
    assert len(seen) > 5
    for mask in seen:
        assert mask.data_ptr() % 16 == 0 and mask.stride() == (0, 1)
        assert mask.untyped_storage().nbytes() % 32 == 0  # whole blocks of 8 numbers


def test_pixel_in_no_set_gets_the_bias():
    scene = make_scene(3, ignore=0.4, padding=0.3, agree=0.5)
    module = build(scene)
    nodes = module.select(*scene.inputs[1:], valid=scene.valid)
    outside = (nodes.node_index < 0).all(1).reshape(scene.x.shape[0], *scene.x.shape[2:])
    assert outside.any()
    assert not outside.all()
    found = module.propagate(scene.x, nodes).movedim(1, -1)[outside]
    assert torch.equal(found, module.merge_bias.expand_as(found))


# ---------------------------------------------------------------- laws
@settings(max_examples=15)
@given(scenes(stride=1), OPTIONS, st.booleans())
def test_permuting_pixels_commutes(scene, options, training):
    options["easy_ratio"] = 1.0  # no random choice
    module = build(scene, **options).train(training)
    shape, n = scene.x.shape[-2:], scene.x.shape[-2:].numel()
    perm = torch.randperm(n, generator=seeded(2))

    def moved(t):
        return None if t is None else t.flatten(-2)[..., perm].reshape(*t.shape[:-2], *shape)

    first = module(*scene.inputs, valid=scene.valid)
    second = module(*[moved(t) for t in scene.inputs], valid=moved(scene.valid))
    assert relative(second, moved(first)) <= EXACT


@settings(max_examples=15)
@given(scenes(stride=1), OPTIONS, st.booleans())
def test_relabelling_classes_commutes(scene, options, training):
    options.update(easy_ratio=1.0, scope="class")
    module = build(scene, **options).train(training)
    other = build(scene, **options).train(training)
    classes = scene.logits.shape[1]
    perm = torch.randperm(classes, generator=seeded(3))  # new class m is the old perm[m]
    with torch.no_grad():
        for name in PARAMETERS[:4]:
            p = getattr(module, name)
            if p is not None:
                getattr(other, name).copy_(p[perm] if len(p) == classes else p)
        other.merge_bias.copy_(module.merge_bias)
    new_label = torch.full((256,), 255)
    new_label[perm] = torch.arange(classes)
    first = module(*scene.inputs, valid=scene.valid)
    second = other(scene.x, scene.logits[:, perm], new_label[scene.targets], valid=scene.valid)
    assert relative(second, first) <= EXACT


@settings(max_examples=15)
@given(scenes(ignore=0.0), OPTIONS)
def test_dynamic_without_hard_positives_is_coarse(scene, options):
    options.update(samples=("easy_positive", "hard_negative"), easy_ratio=1.0, nodes="dynamic")
    dynamic, coarse = build(scene, **options), build(scene, **{**options, "nodes": "coarse"})
    first = dynamic(*scene.inputs, valid=scene.valid)
    second = coarse(scene.x, scene.logits, valid=scene.valid)
    assert torch.equal(first, second)  # bit for bit


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
@pytest.mark.parametrize("nodes", ["coarse", "dynamic"])
def test_no_leak_between_classes_and_images(edges, nodes):
    scene = make_scene(7, batch=2, channels=3, classes=4, h=3, w=4, agree=0.5)
    module = build(scene, edges=edges, nodes=nodes, topk=2)
    chosen = module.select(*scene.inputs[1:], valid=scene.valid)
    sets = sets_from(scene, chosen, 4, nodes, PARTS, 1.0, "class", True)
    n = 12
    unaffected = 0
    for b in range(2):
        for i in range(n):
            probe = module.propagate(scene.x, chosen)[b].flatten(1)[:, i]
            grad = torch.autograd.grad(probe.sum(), scene.x)[0].flatten(2)  # (B, C, N)
            together = set().union(*[s for s in sets[b] if i in s])
            for other in range(2):
                for j in range(n):
                    if other != b or j not in together:
                        assert not grad[other, :, j].any(), (b, i, other, j)
                        unaffected += 1
    assert unaffected > 2 * n * n  # more than the other image alone
    # The same forwards: a changed feature moves the pixels that share a set with it, no other.
    before = module.propagate(scene.x, chosen).detach()
    for j in range(n):
        x = scene.x.detach().clone()
        x[0].flatten(1)[:, j] += 1.0
        together = set().union(*[s for s in sets[0] if j in s])
        apart = torch.tensor([i not in together for i in range(n)])
        after = module.propagate(x, chosen).detach()
        assert torch.equal(after[1], before[1])
        assert torch.equal(after[0].flatten(1)[:, apart], before[0].flatten(1)[:, apart])
        assert apart.all() or not torch.equal(after, before)


@pytest.mark.parametrize("scope", ["class", "image"])
@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
@pytest.mark.parametrize("training", [True, False])
def test_batch_mates_and_padding_change_nothing(scope, edges, training):
    scene = make_scene(5, batch=3, padding=0.3)
    module = build(scene, scope=scope, edges=edges, topk=3).train(training)
    together = module(*scene.inputs, valid=scene.valid)
    for b in range(3):
        h, w = (int(scene.valid[b].any(d).sum()) for d in (1, 0))
        alone = module(*[t[b : b + 1, ..., :h, :w] for t in scene.inputs])
        assert relative(together[b : b + 1, :, :h, :w], alone) <= EXACT
    # The content of the padding, even NaN, affects nothing else.
    inside = scene.valid[:, None].expand_as(scene.x)
    x = torch.where(inside, scene.x, torch.nan)
    logits = torch.where(scene.valid[:, None], scene.logits, -scene.logits)
    found = module(x, logits, scene.targets, valid=scene.valid)
    assert torch.equal(found[inside], together[inside])


def test_without_padding_valid_is_a_no_op():
    scene = make_scene(6, padding=0)
    module = build(scene)
    everywhere = torch.ones(2, 4, 4, dtype=torch.bool)
    assert torch.equal(module(*scene.inputs), module(*scene.inputs, valid=everywhere))


@settings(max_examples=15)
@given(scenes(), OPTIONS)
def test_evaluation_ignores_targets(scene, options):
    module = build(scene, **options, relu=True).eval()
    plain = module(scene.x, scene.logits, valid=scene.valid)
    assert torch.equal(module(*scene.inputs, valid=scene.valid), plain)
    # Labels of another numbering do not matter either, nor does which nodes training samples.
    foreign = torch.full_like(scene.targets, 200)
    assert torch.equal(module(scene.x, scene.logits, foreign, valid=scene.valid), plain)
    nodes = module.select(scene.logits, foreign, valid=scene.valid)
    assert nodes.easy_positive is None
    if options["scope"] == "class" and options["nodes"] != "soft":
        swapped = {"coarse": "dynamic", "dynamic": "coarse"}[options["nodes"]]
        other = build(scene, **{**options, "nodes": swapped}, relu=True).eval()
        assert torch.equal(other(*scene.inputs, valid=scene.valid), plain)


def test_training_without_targets():
    scene = make_scene(8)
    coarse = build(scene, nodes="coarse")
    assert torch.equal(coarse(scene.x, scene.logits), coarse.eval()(scene.x, scene.logits))
    with pytest.raises(ValueError, match="dynamic"):
        build(scene, nodes="dynamic")(scene.x, scene.logits)
    build(scene, nodes="dynamic").eval()(scene.x, scene.logits)


def test_image_scope_ignores_modes_and_targets():
    scene = make_scene(9)
    first = build(scene, scope="image", nodes="dynamic")
    second = build(scene, scope="image", nodes="coarse", easy_ratio=0.3)
    assert len(first.graph_weight) == len(first.merge_weight) == len(first.phi) == 1
    expected = first(scene.x, scene.logits)
    assert torch.equal(first(*scene.inputs), expected)
    assert torch.equal(second(*scene.inputs), expected)
    assert torch.equal(first(scene.x, -scene.logits), expected)
    assert torch.equal(first.eval()(*scene.inputs), expected)


def test_image_scope_is_one_class():
    # Plain GCN over all pixels = the class-wise form when all are predicted as the one class.
    scene = make_scene(9, classes=1, ignore=0.0)
    image, single = build(scene, scope="image"), build(scene, nodes="coarse")
    assert torch.equal(image(scene.x, scene.logits), single(scene.x, scene.logits))


def test_forward_propagates_over_selected_nodes():
    scene = make_scene(10, agree=1.0, ignore=0.0)
    module = build(scene, easy_ratio=0.5, relu=True)

    def both(seed):
        nodes = module.select(*scene.inputs[1:], valid=scene.valid, generator=seeded(seed))
        return module.propagate(scene.x, nodes)

    found = module(*scene.inputs, valid=scene.valid, generator=seeded(1))
    assert torch.equal(found, both(1))
    assert not torch.equal(found, both(2))  # another choice of easy positives


def test_norm_and_relu_follow_the_merge():
    scene = make_scene(12)
    bare = build(scene)(*scene.inputs)
    assert (bare < 0).any()
    assert torch.equal(build(scene, relu=True)(*scene.inputs), bare.relu())
    normed = build(scene, norm=nn.BatchNorm2d)
    assert any(isinstance(m, nn.BatchNorm2d) for m in normed.modules())
    for name, p in normed.named_parameters():
        if p.dim() == 1 and name != "merge_bias":
            nn.init.ones_(p) if name.endswith("weight") else nn.init.zeros_(p)
    with torch.no_grad():
        normed.merge_bias.copy_(build(scene).merge_bias)
    mean = bare.mean((0, 2, 3), keepdim=True)
    var = bare.var((0, 2, 3), unbiased=False, keepdim=True)
    for name in PARAMETERS:  # the draw of `build` may have gone another way round
        with torch.no_grad():
            getattr(normed, name).copy_(getattr(build(scene), name))
    expected = (bare - mean) / (var + 1e-5).sqrt()
    assert relative(normed(*scene.inputs), expected) <= EXACT


def test_defaults():
    module = CDGCModule(8, 3)
    assert tuple(module.phi.shape) == tuple(module.phi_prime.shape) == (1, 8, 8)
    assert tuple(module.graph_weight.shape) == tuple(module.merge_weight.shape) == (3, 8, 8)
    assert tuple(module.merge_bias.shape) == (8,)
    assert tuple(CDGCModule(8, 3, shared_phi=False).phi.shape) == (3, 8, 8)
    uniform = CDGCModule(8, 3, edges="uniform")
    assert uniform.phi is None
    assert uniform.phi_prime is None
    x, logits = torch.randn(2, 8, 5, 5), torch.randn(2, 3, 5, 5)
    targets = torch.randint(3, (2, 33, 33))
    found = module(x, logits, targets)
    assert found.shape == (2, 8, 5, 5)
    assert found.isfinite().all()
    assert (found >= 0).all()


def test_reset_parameters_reaches_every_parameter():
    """As for a module that was built on the meta device; the same draws as at construction."""
    torch.manual_seed(1)
    module = CDGCModule(8, 3, **DEFAULT_GRAPH, norm=nn.BatchNorm2d)
    expected = {name: p.clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.nan)
    torch.manual_seed(1)
    for part in (module.norm, module):
        part.reset_parameters()
    found = dict(module.named_parameters())
    assert all(p.isfinite().all() for p in found.values())
    assert torch.equal(found["distance.offset"], expected["distance.offset"])
    assert torch.equal(found["distance.log_precision"], expected["distance.log_precision"])


@pytest.mark.parametrize("channels", [16, 64, 256])
@pytest.mark.parametrize("scale", [1.0, "sqrt"])
def test_initial_similarities_are_of_order_one(channels, scale):
    # Else the softmax starts as one-hot and phi gets no gradient.
    torch.manual_seed(0)
    module = CDGCModule(channels, 2, scale=scale)
    x = torch.randn(200, channels)
    factor = channels**-0.5 if scale == "sqrt" else scale
    f = factor * (x @ module.phi[0]) @ (x @ module.phi_prime[0]).T
    assert f.std() < 4.0
    for p in (module.graph_weight, module.merge_weight):
        assert 0.1 < (x @ p[0]).std() < 3.0


# ---------------------------------------------------------------- gradients
@settings(max_examples=20)
@given(scenes(), OPTIONS, st.booleans())
def test_every_parameter_has_a_gradient(scene, options, frozen_input):
    # DDP waits for every gradient: absent classes and empty graphs give zero, never None.
    module = build(scene, **options)
    x = scene.x.detach() if frozen_input else scene.x
    module(x, *scene.inputs[1:], valid=scene.valid).sum().backward()
    chosen_only = options["edges"] == "topk" and options["topk_weights"] == "equal"
    for name, p in module.named_parameters():
        if chosen_only and name.startswith("phi"):
            assert p.grad is None or not p.grad.any()
        else:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
    if not frozen_input:
        assert scene.x.grad is not None
    if options["scope"] == "class":
        nodes = module.select(*scene.inputs[1:], valid=scene.valid, generator=seeded())
        for m in (nodes.counts.sum(1) == 0).nonzero().flatten().tolist():
            assert not module.graph_weight.grad[m].any()
            assert not module.merge_weight.grad[m].any()


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
def test_no_nodes_at_all(edges):
    scene = make_scene(13, ignore=1.0)
    module = build(scene, edges=edges)
    found = module(*scene.inputs)
    assert torch.equal(found, module.merge_bias[:, None, None].expand_as(found))
    found.sum().backward()
    for name, p in module.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any() == (name == "merge_bias")
    assert scene.x.grad is not None
    assert not scene.x.grad.any()
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    found = module.eval()(scene.x, scene.logits, valid=nothing)
    assert torch.equal(found, module.merge_bias[:, None, None].expand_as(found))


def test_coarse_logits_get_no_gradient():
    scene = make_scene(14)
    scene.logits.requires_grad_()
    found = build(scene)(*scene.inputs)
    assert torch.autograd.grad(found.sum(), scene.logits, allow_unused=True) == (None,)
    assert not class_map(scene.logits).requires_grad


@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
def test_gradcheck(edges):
    scene = make_scene(15, batch=2, channels=2, classes=3, h=2, w=2, agree=0.4, padding=0)
    module = build(scene, edges=edges, topk=2, shared_phi=False)
    nodes = module.select(*scene.inputs[1:])
    names = [name for name in PARAMETERS if getattr(module, name) is not None]

    def run(x, *weights):
        given_weights = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(
            Propagate(module), {f"module.{k}": v for k, v in given_weights.items()}, (x, nodes)
        )

    leaves = (scene.x, *[getattr(module, name) for name in names])
    assert torch.autograd.gradcheck(run, leaves, atol=1e-6)


class Propagate(nn.Module):
    """`propagate` as a forward, for functional_call."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, nodes):
        return self.module.propagate(x, nodes)


# ---------------------------------------------------------------- precision
@pytest.mark.parametrize(("nodes", "edges"), NODES_AND_EDGES[3:-1])
@pytest.mark.parametrize("scope", ["class", "image"])
def test_bfloat16_autocast_is_near(nodes, edges, scope):
    scene = make_scene(16, channels=8, dtype=torch.float32)
    module = build(scene, nodes=nodes, edges=edges, scope=scope, scale="sqrt")
    exact = module(*scene.inputs, valid=scene.valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(*scene.inputs, valid=scene.valid)
    assert relative(found.float(), exact) < 0.05  # a few roundings of 2**-8 each
    found.float().sum().backward()
    assert scene.x.grad.isfinite().all()
    for p in module.parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # features as a bf16 backbone gives them
        found = module(scene.x.bfloat16(), scene.logits.bfloat16(), scene.targets)
    assert found.isfinite().all()


@pytest.mark.parametrize(("nodes", "edges"), NODES_AND_EDGES)
def test_autocast_leaves_float64_alone(nodes, edges):
    scene = make_scene(16)
    module = build(scene, nodes=nodes, edges=edges)
    exact = module(*scene.inputs, valid=scene.valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(*scene.inputs, valid=scene.valid)
    assert found.dtype == torch.float64 and torch.equal(found, exact)
    found.sum().backward()


@pytest.mark.parametrize("edges", ["similarity", "topk"])
def test_float16_autocast_is_finite_on_large_features(edges):
    # 64 channels of features around 100 give similarities beyond the largest float16.
    scene = make_scene(16, channels=64, dtype=torch.float32)
    module = build(scene, edges=edges, topk=3)
    with torch.autocast("cpu", dtype=torch.float16):
        found = module(scene.x * 100, *scene.inputs[1:], valid=scene.valid)
    assert found.isfinite().all()
    found.float().sum().backward()
    assert scene.x.grad.isfinite().all()


def test_float32_is_near_float64():
    scene = make_scene(17)
    module = build(scene)
    exact = module(*scene.inputs, valid=scene.valid)
    single = build(scene).float()
    with torch.no_grad():
        for p, q in zip(single.parameters(), module.parameters(), strict=True):
            p.copy_(q)
    found = single(scene.x.float(), scene.logits.float(), scene.targets, valid=scene.valid)
    assert found.dtype == torch.float32
    assert relative(found.double(), exact) < 1e-4


# ---------------------------------------------------------------- what a feature tells
@pytest.mark.parametrize("edges", ["similarity", "uniform", "topk"])
@pytest.mark.parametrize(("hard_positives", "told"), [("nodes", True), ("keys_only", False)])
def test_a_wrong_pixel_must_not_learn_its_label(edges, hard_positives, told):
    # Four pixels in a row, predicted 0, 0, 1, 2. Pixel 0 is wrong whether its label is 1 or 2: it
    # is then a hard positive of that class. In the graph of Eq. 4 its refined feature differs
    # between the two, so a classifier can read the label off it, in training only.
    scene = make_scene(0, batch=1, classes=3, h=1, w=4, absent=0, ignore=0, padding=0)
    logits = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    for pixel, coarse in enumerate((0, 0, 1, 2)):
        logits[0, coarse, 0, pixel] = 1
    module = build(scene, edges=edges, hard_positives=hard_positives)
    found = [
        module(scene.x, logits, torch.tensor([[[label, 0, 1, 2]]]))[0, :, 0] for label in (1, 2)
    ]
    assert torch.equal(found[0][:, 0], found[1][:, 0]) is not told
    # It takes part in its class's graph either way: pixel 2 (class 1) has it as a neighbor or not.
    assert not torch.equal(found[0][:, 2], found[1][:, 2])


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": "hard"}, "hard"),
        ({"edges": "knn"}, "knn"),
        ({"scope": "batch"}, "batch"),
        ({"topk_weights": "linear"}, "linear"),
        ({"hard_positives": "queries"}, "queries"),
        ({"topk": 0}, "0"),
        ({"samples": ()}, "samples"),
        ({"samples": ("easy",)}, "easy"),
        ({"easy_ratio": 1.2}, r"1\.2"),
        ({"easy_ratio": -1.0}, "-1"),
        ({"scale": "cube"}, "cube"),
        ({"nodes": "soft", "edges": "uniform"}, "similarity.*uniform"),
        ({"in_channels": 0}, "0"),
        ({"num_classes": 0}, "0"),
    ],
)
def test_bad_options(change, message):
    with pytest.raises(ValueError, match=message):
        CDGCModule(**{"in_channels": 4, "num_classes": 3, **change})


X, LOGITS = torch.zeros(2, 4, 3, 5), torch.zeros(2, 3, 3, 5)
TARGETS, VALID = torch.zeros(2, 17, 33, dtype=torch.int64), torch.ones(2, 3, 5, dtype=torch.bool)


# (change, shape found, what the message must name along with it)
WRONG_INPUTS = [
    ({"x": X[0]}, "4, 3, 5", "B"),
    ({"x": torch.zeros(2, 6, 3, 5)}, "2, 6, 3, 5", "4"),
    ({"coarse_logits": LOGITS[0]}, "3, 3, 5", "2"),
    ({"coarse_logits": LOGITS[:1]}, "1, 3, 3, 5", "2"),
    ({"coarse_logits": LOGITS[:, :2]}, "2, 2, 3, 5", "3"),
    ({"coarse_logits": torch.zeros(2, 3, 4, 5)}, "2, 3, 4, 5", "3"),
    ({"coarse_logits": torch.zeros(2, 3, 3, 1)}, "2, 3, 3, 1", "5"),
    ({"valid": VALID[0]}, "3, 5", "B|2"),
    ({"valid": VALID[:1]}, "1, 3, 5", "2"),
    ({"valid": torch.ones(2, 17, 33, dtype=torch.bool)}, "2, 17, 33", "3"),
    ({"valid": VALID.long()}, "int64", "bool"),
]
WRONG_TARGETS = [
    ({"targets": TARGETS[0]}, "17, 33", "B|2"),
    ({"targets": TARGETS[:1]}, "1, 17, 33", "2"),
    ({"targets": TARGETS[:, None]}, "2, 1, 17, 33", "B|2"),
    ({"targets": TARGETS.float()}, "float", "int"),
    ({"targets": TARGETS.bool()}, "bool", "int"),
]


@pytest.mark.parametrize(
    ("change", "found", "wanted", "scope"),
    [(*row, scope) for scope in ("class", "image") for row in WRONG_INPUTS]
    + [(*row, "class") for row in WRONG_TARGETS],  # an image graph looks at no target
)
def test_bad_shapes(change, found, wanted, scope):
    module = CDGCModule(4, 3, scope=scope)
    good = {"x": X, "coarse_logits": LOGITS, "targets": TARGETS, "valid": VALID}
    module(**good)
    with pytest.raises(ValueError, match=found) as error:
        module(**{**good, **change})
    rest = str(error.value).replace(found, "", 1)
    assert any(part in rest for part in wanted.split("|")), str(error.value)


@pytest.mark.parametrize("value", [3, -1, 200])
def test_bad_target_value(value):
    targets = TARGETS.clone()
    targets[1, 0, 0] = value  # pixel (0, 0) is read by node (0, 0)
    with pytest.raises(ValueError, match=rf"{value}\b"):
        CDGCModule(4, 3)(X, LOGITS, targets)


def test_propagate_checks_its_input():
    module = CDGCModule(4, 3)
    nodes = module.select(LOGITS, TARGETS)
    with pytest.raises(ValueError, match="2, 6, 3, 5"):
        module.propagate(torch.zeros(2, 6, 3, 5), nodes)
    with pytest.raises(ValueError, match=r"30 pixels, .* got 40"):  # the nodes of another size
        module.propagate(torch.zeros(2, 4, 4, 5), nodes)
    with pytest.raises(ValueError, match="1, 4, 3, 5"):  # of another batch
        module.propagate(torch.zeros(1, 4, 3, 5), nodes)
    with pytest.raises(ValueError, match="1, 4, 6, 5"):  # as many pixels, but one image
        module.propagate(torch.zeros(1, 4, 6, 5), nodes)
    with pytest.raises(ValueError, match="4, 3, 5"):
        module.propagate(torch.zeros(4, 3, 5), nodes)


def test_small_target_types():
    scene = make_scene(18)
    module = build(scene)
    expected = module(*scene.inputs)
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(module(scene.x, scene.logits, scene.targets.to(dtype)), expected)


def test_oracle_options_match_the_module():
    # The oracle's defaults are the documented ones.
    scene = make_scene(19)
    first = build(scene)(*scene.inputs, valid=scene.valid)
    second = build(scene, **DEFAULTS)(*scene.inputs, valid=scene.valid)
    assert torch.equal(first, second)
