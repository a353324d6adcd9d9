"""The head: gradients of all parameters, the contract, and what configuration keys do."""

import inspect
import itertools
from operator import attrgetter

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from cdgc import DEFAULT_GRAPH, CDGCModule, select_nodes
from cdgcnet import CDGCNetHead
from cdgcnet.modeling import cdgc_head
from cdgcnet.modeling.cdgc_head import log_node_fractions
from cdgcnet.modeling.context_modules import CONTEXT_MODULES, Pixelwise
from cdgcnet.modeling.head_losses import HeadLosses

SHAPES = {"res4": ShapeSpec(channels=4, stride=8), "res5": ShapeSpec(channels=6, stride=8)}


def make_head(classes=2, **options):
    options = {"channels": 8, "aspp_channels": 8, "aux_channels": 8, "dropout": 0.0} | options
    options.setdefault("graph", CDGCModule(8, classes))
    options.setdefault("losses", HeadLosses())
    return CDGCNetHead(SHAPES, num_classes=classes, **options)


def features_of(height=5, width=7, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "res4": torch.rand(batch, 4, height, width, generator=generator),
        "res5": torch.rand(batch, 6, height, width, generator=generator),
    }


# ---------------------------------------------------------------- losses of a config
def test_weights_come_from_the_config(tiny_cfg, make_batch):
    # Twice the weight, twice the loss; all else equal.
    keys = {"COARSE_WEIGHT": "loss_coarse", "REFINED_WEIGHT": "loss_refined"}
    keys |= {"AUX_WEIGHT": "loss_aux"}
    defaults = {"COARSE_WEIGHT": 0.6, "REFINED_WEIGHT": 0.7, "AUX_WEIGHT": 0.4}

    def losses(factor):
        changes = {f"MODEL.CDGC.LOSS.{k}": factor * v for k, v in defaults.items()}
        torch.manual_seed(0)
        return build_model(tiny_cfg(changes)).train()(make_batch((33, 33), (33, 33)))

    once, twice = losses(1.0), losses(2.0)
    assert set(once) == set(keys.values())
    for name in once:
        assert twice[name].item() == pytest.approx(2 * once[name].item(), rel=1e-5)


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0, 4.0, 5.0], [1, 2, 3, 4, 5]])
def test_class_weights_from_the_config(tiny_cfg, make_batch, weights):
    # Equal weights of any size leave a weighted mean as it is; these do not.
    def losses(w):
        torch.manual_seed(0)
        model = build_model(tiny_cfg({"MODEL.CDGC.LOSS.CLASS_WEIGHTS": w})).train()
        return model(make_batch((33, 33), (33, 33)))

    plain, equal, found = losses([]), losses([7.0] * 5), losses(weights)
    for name in plain:
        assert equal[name].item() == pytest.approx(plain[name].item(), rel=1e-5)
        assert found[name].item() != pytest.approx(plain[name].item(), rel=1e-5)


# ---------------------------------------------------------------- a training step
# tiny_cfg has the paper's graph; this is the one that the project's configs start from.
DEFAULT = {f"MODEL.CDGC.{key.upper()}": value for key, value in DEFAULT_GRAPH.items()}
OPTIONS = [
    {
        "MODEL.CDGC.FUSION": fusion,
        "MODEL.CDGC.FUSE_CONV": fuse_conv,
        "MODEL.CDGC.CONTEXT": context,
        "MODEL.CDGC.LOSS.AUX_WEIGHT": aux,
    }
    for fusion, fuse_conv, context, aux in itertools.product(
        ("concat", "sum"), (False, True), ("aspp", "none"), (0.4, 0.0)
    )
]
OPTIONS += [
    {"MODEL.CDGC.ENABLED": False, "MODEL.CDGC.CONTEXT": context, "MODEL.CDGC.LOSS.AUX_WEIGHT": aux}
    for context, aux in itertools.product(("aspp", "none"), (0.4, 0.0))
]
OPTIONS += [
    {"MODEL.CDGC.NODES": nodes, "MODEL.CDGC.EDGES": edges, "MODEL.CDGC.SCOPE": scope}
    for nodes, edges, scope in itertools.product(
        ("dynamic", "coarse"), ("similarity", "uniform", "topk"), ("class", "image")
    )
]
OPTIONS += [
    {"MODEL.CDGC.CONTEXT_MODULE": name, "MODEL.CDGC.FUSION": fusion}
    for name, fusion in itertools.product(CONTEXT_MODULES, ("concat", "sum"))
]
OPTIONS += [
    DEFAULT,
    {"MODEL.CDGC.ENABLED": False, "MODEL.CDGC.LOSS.BASELINE": "ohem"},
    {"MODEL.CDGC.SHARED_PHI": False},
    {"MODEL.CDGC.SCALE": "sqrt"},
    {"MODEL.CDGC.EASY_RATIO": 0.0},
    {"MODEL.CDGC.EASY_RATIO": 0.5},
    {"MODEL.CDGC.SAMPLES": ["hard_positive", "hard_negative"]},
    {"MODEL.CDGC.NORM": ""},
    {"MODEL.CDGC.RELU": False},
    {"MODEL.CDGC.ALIGN_CORNERS": False},
    {"MODEL.SEM_SEG_HEAD.NORM": ""},
    {"MODEL.SEM_SEG_HEAD.NORM": "GN", "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 32,
     "MODEL.CDGC.CHANNELS": 32, "MODEL.CDGC.AUX_CHANNELS": 32},
    {"MODEL.CDGC.DROPOUT": 0.5},
]  # fmt: skip


def name_of(options):
    return ",".join(f"{k.rsplit('.', 1)[1]}={v}" for k, v in options.items())


def step(cfg, batch):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    losses = model(batch)
    sum(losses.values()).backward()
    return model, losses


@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_every_parameter_has_a_gradient(tiny_cfg, make_batch, options, meta):
    cfg = tiny_cfg({**options, "MODEL.META_ARCHITECTURE": meta})
    model, losses = step(cfg, make_batch((41, 33), (41, 33)))
    expected = {"loss_coarse", "loss_refined"} if cfg.MODEL.CDGC.ENABLED else {"loss_baseline"}
    if cfg.MODEL.CDGC.LOSS.AUX_WEIGHT:
        expected |= {"loss_aux"}
    assert set(losses) == expected
    assert all(torch.isfinite(v) for v in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
        assert torch.isfinite(parameter.grad).all(), f"gradient of {name}"
    # Not only there: the way from every loss to the first layer is open.
    assert model.backbone.stem.conv1.weight.grad.abs().max() > 0
    assert model.sem_seg_head.coarse_predictor[1].weight.grad.abs().max() > 0
    if model.sem_seg_head.graph is not None:
        assert model.sem_seg_head.graph.graph_weight.grad.abs().max() > 0
    if model.sem_seg_head.context_module is not None:
        assert any(p.grad.any() for p in model.sem_seg_head.context_module.parameters())


def test_equal_weights_give_phi_no_gradient(tiny_cfg, make_batch):
    # "equal" is the paper's binary matrix: who is a neighbor, not how near. Only φ goes without.
    options = {"MODEL.CDGC.EDGES": "topk", "MODEL.CDGC.TOPK_WEIGHTS": "equal"}
    model, _ = step(tiny_cfg(options), make_batch((33, 33), (33, 33)))
    # They ask for none either, or distributed training would wait for it.
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"sem_seg_head.graph.phi", "sem_seg_head.graph.phi_prime"}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen)


@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        DEFAULT,
        {"MODEL.CDGC.ENABLED": False},
        {"MODEL.CDGC.ENABLED": False, "MODEL.CDGC.LOSS.BASELINE": "ohem"},
        {"MODEL.CDGC.CONTEXT_MODULE": "ocr"},
        {"MODEL.CDGC.EDGES": "uniform"},
        {"MODEL.CDGC.EDGES": "topk"},
        {"MODEL.CDGC.NODES": "coarse"},
        {"MODEL.CDGC.SCOPE": "image"},
        {"MODEL.CDGC.LOSS.CLASS_WEIGHTS": [1.0, 2.0, 3.0, 4.0, 5.0]},
    ],
    ids=name_of,
)
def test_all_ignored(tiny_cfg, make_batch, options, meta):
    batch = make_batch((33, 33), (33, 33))
    for sample in batch:
        sample["sem_seg"].fill_(255)
    model, losses = step(tiny_cfg({**options, "MODEL.META_ARCHITECTURE": meta}), batch)
    assert [v.item() for v in losses.values()] == [0.0] * len(losses)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("options", [{}, DEFAULT], ids=["paper", "default"])
@pytest.mark.parametrize("size", [65, 33, 9, 1, 769])
def test_odd_crops(tiny_cfg, make_batch, size, options):
    # Two images: with one, batch norm after global pooling has a single value (trap 11).
    model, losses = step(tiny_cfg(options), make_batch((size, size), (size, size)))
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# ---------------------------------------------------------------- contract
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_predictions(enabled, fusion):
    head = make_head(
        3, graph=CDGCModule(8, 3) if enabled else None, fusion=fusion, context="none"
    ).train()
    targets = torch.randint(3, (2, 40, 56))
    output = head.predict_logits(features_of(), targets)
    assert output.refined.shape == output.aux.shape == (2, 3, 5, 7)
    if enabled:
        assert output.coarse.shape == (2, 3, 5, 7)
    else:
        assert output.coarse is None and output.nodes is None
    output = head.eval().predict_logits(features_of())
    assert output.aux is None  # not computed where nobody asks for it
    if enabled:  # in evaluation each pixel is a node of its one coarse class
        assert output.nodes.counts.sum(0).tolist() == [35, 35]


def test_sum_and_concat_by_hand():
    # With X̂ silenced both fusions must give what the classifier makes of X alone.
    for fusion in ("concat", "sum"):
        head = make_head(fusion=fusion, context="none").eval()
        with torch.no_grad():
            head.graph.merge_weight.zero_()
            features = features_of()
            output = head.predict_logits(features)
            x = head.reduce(features["res5"])
            conv = head.refined_predictor[1]
            weight = conv.weight[:, :8, 0, 0]
            expected = torch.einsum("mc,bchw->bmhw", weight, x) + conv.bias.view(-1, 1, 1)
        torch.testing.assert_close(output.refined, expected)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_a_context_module_replaces_the_graph(fusion):
    # X̂ = 2 X mean(P): the module gets X and the coarse logits, the fusion gets X and X̂.
    class Scaled(nn.Module):
        def forward(self, x, coarse_logits):
            return 2 * x * coarse_logits.mean()

    head = make_head(3, graph=None, context_module=Scaled(), fusion=fusion, context="none").train()
    features = features_of()
    output = head.predict_logits(features, torch.randint(3, (2, 40, 56)))
    x = head.reduce(features["res5"])
    refined = 2 * x * head.coarse_predictor(x).mean()
    fused = torch.cat([x, refined], 1) if fusion == "concat" else x + refined
    torch.testing.assert_close(output.refined, head.refined_predictor(fused))
    assert output.coarse.shape == output.aux.shape == (2, 3, 5, 7)
    assert output.nodes is None and output.oracle is None
    assert set(head.losses(output, torch.zeros(2, 40, 56).long())) == {
        "loss_coarse", "loss_refined", "loss_aux"
    }  # fmt: skip


def test_oracle_of_soft_nodes_is_hard():
    # Right classes are sure ones: the oracle is what coarse nodes make of them.
    features, targets = features_of(), torch.randint(3, (2, 40, 56))
    soft = make_head(3, graph=CDGCModule(8, 3, nodes="soft")).eval()
    coarse = make_head(3, graph=CDGCModule(8, 3, nodes="coarse")).eval()
    coarse.load_state_dict(soft.state_dict())
    found, expected = (h.predict_logits(features, oracle=targets) for h in (soft, coarse))
    torch.testing.assert_close(found.oracle, expected.oracle)
    assert not torch.allclose(found.refined, expected.refined)


def test_oracle_labels_that_are_no_class_are_named():
    head = make_head(3, graph=CDGCModule(8, 3, nodes="coarse")).eval()
    targets = torch.full((2, 40, 56), 7)
    with pytest.raises(ValueError, match="oracle label value 7 is neither a class in"):
        head.predict_logits(features_of(), oracle=targets)


@pytest.mark.parametrize("name", ["graph", *CONTEXT_MODULES])
def test_context_module_from_the_config(tiny_cfg, name):
    head = build_model(tiny_cfg({"MODEL.CDGC.CONTEXT_MODULE": name})).sem_seg_head
    assert (head.graph is None) == (name != "graph")
    assert (head.context_module is None) == (name == "graph")
    parts = {name.split(".")[0] for name in head.state_dict()}
    assert parts == {
        "context", "reduce", "coarse_predictor", "aux_head", "refined_predictor",
        "graph" if name == "graph" else "context_module",
    }  # fmt: skip


def test_the_control_counts_the_configured_graph(tiny_cfg):
    # 5 classes of 8 channels: W and U 10·8²; φ and φ' of each class 10·8² more, none if uniform.
    # Two layers have 2·8·H: H is 10·8, 5·8; with one shared φ and φ' 6·8.
    for options, hidden in (
        ({}, 6 * 8),
        ({"MODEL.CDGC.SHARED_PHI": False}, 10 * 8),
        ({"MODEL.CDGC.EDGES": "uniform"}, 5 * 8),
    ):
        cfg = tiny_cfg({"MODEL.CDGC.CONTEXT_MODULE": "pixelwise", **options})
        block = build_model(cfg).sem_seg_head.context_module
        assert isinstance(block, Pixelwise) and block.layers[0].out_channels == hidden


@pytest.mark.parametrize("context", ["aspp", "none"])
def test_evaluation_ignores_targets(context):
    # Detectron2's SemanticSegmentor hands ground truth over in evaluation too (trap 1).
    head = make_head(3, context=context).eval()
    features = features_of()
    with torch.no_grad():
        alone, nothing = head(features)
        given, no_losses = head(features, torch.randint(3, (2, 40, 56)))
    assert nothing == no_losses == {}
    assert torch.equal(alone, given)


@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
def test_models_ignore_targets_in_evaluation(tiny_cfg, build, make_batch, meta):
    model = build(tiny_cfg({"MODEL.META_ARCHITECTURE": meta}))
    batch = make_batch((41, 57))
    blind = [{k: v for k, v in x.items() if k != "sem_seg"} for x in batch]
    with torch.no_grad():
        assert torch.equal(model(batch)[0]["sem_seg"], model(blind)[0]["sem_seg"])


def test_size_of_evaluation_logits():
    head = make_head(3, context="none").eval()
    with torch.no_grad():
        assert head(features_of())[0].shape == (2, 3, 40, 56)  # 5 * 8, 7 * 8
        # A 33 x 49 image has 5 x 7 nodes too; only the image itself tells.
        features = {**features_of(), "image": torch.empty(2, 3, 33, 49)}
        assert head(features)[0].shape == (2, 3, 33, 49)


def test_training_needs_targets():
    with pytest.raises(ValueError, match="sem_seg"):
        make_head().train()(features_of())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "product"}, "fusion.*concat.*sum.*product"),
        ({"context": "psp"}, "context.*aspp.*none.*psp"),
        ({"context_module": nn.Identity()}, "replaces the graph.*Identity"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_head(**options)


def test_two_features_are_needed():
    with pytest.raises(ValueError, match="two input features"):
        CDGCNetHead({"res5": SHAPES["res5"]}, num_classes=2, losses=HeadLosses())


def test_parameters_are_not_built_where_they_are_not_used():
    assert make_head(losses=HeadLosses(aux_weight=0.0)).aux_head is None
    names = {n.split(".")[0] for n, _ in make_head(graph=None, context="none").named_parameters()}
    assert names == {"reduce", "coarse_predictor", "aux_head"}


def test_dropout_before_every_classifier(tiny_cfg):
    head = build_model(tiny_cfg({"MODEL.CDGC.DROPOUT": 0.25})).sem_seg_head
    for classifier in (head.coarse_predictor, head.refined_predictor, head.aux_head[1]):
        assert [type(m).__name__ for m in classifier] == ["Dropout2d", "Conv2d"]
        assert classifier[0].p == 0.25


REACHES = [
    # key, value, where it arrives in the head
    ("MODEL.CDGC.NODES", "coarse", "graph.nodes"),
    ("MODEL.CDGC.EDGES", "topk", "graph.edges"),
    ("MODEL.CDGC.SCOPE", "image", "graph.scope"),
    ("MODEL.CDGC.EASY_RATIO", 0.5, "graph.easy_ratio"),
    ("MODEL.CDGC.SAMPLES", ("hard_positive",), "graph.samples"),
    ("MODEL.CDGC.TOPK", 3, "graph.topk"),
    ("MODEL.CDGC.TOPK_WEIGHTS", "equal", "graph.topk_weights"),
    ("MODEL.CDGC.ALIGN_CORNERS", False, "graph.align_corners"),
    ("MODEL.CDGC.CHECK_FINITE", True, "graph.check_finite"),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 200, "graph.ignore_label"),
    ("MODEL.CDGC.FUSION", "sum", "fusion"),
    ("MODEL.CDGC.ALIGN_CORNERS", False, "losses.align_corners"),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 200, "losses.ignore_label"),
    ("MODEL.CDGC.LOSS.OHEM_THRESH", 0.5, "losses.ohem_thresh"),
    ("MODEL.CDGC.LOSS.OHEM_MIN_KEPT", 7.0, "losses.ohem_min_kept"),
    ("MODEL.CDGC.LOSS.COARSE_WEIGHT", 0.1, "losses.coarse_weight"),
    ("MODEL.CDGC.LOSS.REFINED_WEIGHT", 0.1, "losses.refined_weight"),
    ("MODEL.CDGC.LOSS.REFINED", "ce", "losses.refined"),
    ("MODEL.CDGC.LOSS.AUX_WEIGHT", 0.1, "losses.aux_weight"),
    ("MODEL.CDGC.LOSS.BASELINE_WEIGHT", 0.1, "losses.baseline_weight"),
    ("MODEL.CDGC.LOSS.BASELINE", "ohem", "losses.baseline"),
]


@pytest.mark.parametrize(
    ("key", "value", "place"), REACHES, ids=[f"{k}-{p}" for k, _, p in REACHES]
)
def test_keys_reach_the_head(tiny_cfg, key, value, place):
    head = build_model(tiny_cfg({key: value})).sem_seg_head
    assert attrgetter(place)(head) == value
    assert attrgetter(place)(build_model(tiny_cfg()).sem_seg_head) != value


def test_every_option_of_the_graph_has_a_key(tiny_cfg, monkeypatch):
    given = {}
    monkeypatch.setattr(cdgc_head, "CDGCModule", lambda *args, **options: given.update(options))
    cdgc_head.build_graph(tiny_cfg({**DEFAULT, "MODEL.CDGC.HEADS": 2}))
    options = inspect.signature(CDGCModule).parameters.keys() - {"in_channels", "num_classes"}
    assert given.keys() == options
    assert given["softmax"] == "image" and given["heads"] == 2 and given["distance_bias"]


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("HARD_POSITIVES", "keys_only", {}),
        ("RECEIVERS", "all", {}),
        ("MESSAGE_WEIGHTS", "mean", {"RECEIVERS": "all"}),
        ("SOFTMAX", "image", {"RECEIVERS": "all", "NODES": "coarse"}),
        ("HEADS", 2, {"RECEIVERS": "all", "NODES": "coarse", "SOFTMAX": "image"}),
    ],
)
def test_keys_that_need_others_reach_the_graph(tiny_cfg, key, value, others):
    keys = {f"MODEL.CDGC.{name}": x for name, x in {**others, key: value}.items()}
    graph = build_model(tiny_cfg(keys)).sem_seg_head.graph
    assert getattr(graph, key.lower()) == value
    assert getattr(build_model(tiny_cfg()).sem_seg_head.graph, key.lower()) != value


@pytest.mark.parametrize("wanted", [True, False])
def test_the_distance_bias_is_built_on_request(tiny_cfg, wanted):
    graph = build_model(
        tiny_cfg({**DEFAULT, "MODEL.CDGC.DISTANCE_BIAS": wanted})
    ).sem_seg_head.graph
    assert (graph.distance is not None) == wanted


def test_keys_shape_the_head(tiny_cfg):
    changes = {
        "MODEL.CDGC.SHARED_PHI": False,
        "MODEL.CDGC.SCALE": "sqrt",
        "MODEL.CDGC.RELU": False,
        "MODEL.CDGC.NORM": "",
        "MODEL.CDGC.AUX_CHANNELS": 6,
        "MODEL.SEM_SEG_HEAD.ASPP_DILATIONS": [4, 5, 6],
        "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS": 12,
    }
    head = build_model(tiny_cfg(changes)).sem_seg_head
    assert head.graph.phi.shape == (5, 8, 8)
    assert head.graph.scale == pytest.approx(8**-0.5)
    assert isinstance(head.graph.norm, nn.Identity) and isinstance(head.graph.relu, nn.Identity)
    assert head.aux_head[0].out_channels == 6
    assert [conv.dilation[0] for conv in head.context.convs[1:4]] == [4, 5, 6]
    assert head.context.project.out_channels == 12
    assert head.reduce.kernel_size == (3, 3)


# ---------------------------------------------------------------- node fractions
def node_set():
    # coarse 0 0 1 1, truth 0 1 1 ignore: pixels 0 and 2 are easy, pixel 1 is a hard negative of
    # class 0 and a hard positive of class 1, pixel 3 is nothing: 4 nodes, shares 2/4, 1/4, 1/4.
    return select_nodes(
        torch.tensor([[[0, 0, 1, 1]]]),
        torch.tensor([[[0, 1, 1, 255]]]),
        num_classes=2,
        nodes="dynamic",
    )


def test_node_fractions_by_hand():
    with EventStorage(19) as storage:  # Detectron2's writers write after every 20th iteration
        log_node_fractions(node_set())
    assert {k: v for k, (v, _) in storage.latest().items()} == {
        "nodes/easy_positive": 0.5,
        "nodes/hard_positive": 0.25,
        "nodes/hard_negative": 0.25,
    }


def test_node_fractions_are_written_periodically():
    with EventStorage(7) as storage:
        log_node_fractions(node_set())
    assert not storage.latest()


def test_node_fractions_need_no_storage():
    log_node_fractions(node_set())
    log_node_fractions(None)


@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
def test_training_writes_node_fractions(tiny_cfg, make_batch, meta):
    with EventStorage(0) as storage:
        step(tiny_cfg({"MODEL.META_ARCHITECTURE": meta}), make_batch((33, 33), (33, 33)))
    shares = {k: v for k, (v, _) in storage.latest().items()}
    assert set(shares) == {
        f"nodes/{part}" for part in ("easy_positive", "hard_positive", "hard_negative")
    }
    assert all(0 <= v <= 1 for v in shares.values())
    assert sum(shares.values()) == pytest.approx(1)


# ---------------------------------------------------------------- tracing
class Traced(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, res4, res5):
        return self.head.predict_logits({"res4": res4, "res5": res5}).refined


@pytest.mark.parametrize("graph", [True, False])
def test_tracing_is_refused(graph):
    # A trace of one image silently gives wrong predictions for others.
    head = make_head(graph=CDGCModule(8, 2) if graph else None).eval()
    with pytest.raises(RuntimeError, match="cdgcnet export"):
        torch.jit.trace(Traced(head), tuple(features_of().values()))


def test_torch_export_is_not_blocked():
    model = Traced(make_head(graph=None).eval())
    inputs = tuple(features_of().values())
    exported = torch.export.export(model, inputs)
    torch.testing.assert_close(exported.module()(*inputs), model(*inputs))
