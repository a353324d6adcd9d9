"""cdgc.refine: a network starts unchanged, trains, and keeps its checkpoints."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cdgc
from cdgc.refinement import RefinedClassifier

CLASSES = 5


class Small(nn.Module):
    """An encoder and a classifier."""

    def __init__(self, channels=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(channels, CLASSES, 1))

    def forward(self, x):
        logits = self.head(self.encoder(x))
        return F.interpolate(logits, x.shape[2:], mode="bilinear", align_corners=False)


@pytest.fixture
def images(generator):
    return torch.randn(2, 3, 32, 48, generator=generator)


@pytest.fixture
def labels(generator):
    return torch.randint(CLASSES, (2, 32, 48), generator=generator)


def excite(refined):
    """Give the graph's output a weight, so that it takes part."""
    nn.init.normal_(refined.from_graph.weight, std=0.1)


def test_a_refined_network_starts_as_the_network_it_was(images):
    net = Small().eval()
    expected = net(images)
    refined = cdgc.refine(net, "head.1", CLASSES)
    assert refined is net
    assert torch.equal(net(images), expected)


def test_the_graph_is_the_module_on_the_features(images):
    net = cdgc.refine(Small().eval(), "head.1", norm=None)
    head = net.get_submodule("head.1")
    excite(head)
    x = net.encoder(images)
    coarse = head.coarse(x)
    by_hand = head.fused(x) + head.from_graph(head.graph(x, coarse))
    torch.testing.assert_close(head(x), by_hand)


def test_a_step_trains_every_part(images, labels):
    net = cdgc.refine(Small(), "head.1").train()
    head = net.get_submodule("head.1")
    excite(head)
    loss = F.cross_entropy(net(images), labels) + head.auxiliary_loss(labels)
    loss.backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not missing


def test_auxiliary_loss_is_eq_5_without_the_auxiliary_head(images, labels):
    net = cdgc.refine(Small(), "head.1").train()
    head = net.get_submodule("head.1")
    logits = head(net.encoder(images))
    coarse = head.coarse(net.encoder(images))
    expected = 0.6 * cdgc.cross_entropy(coarse, labels, align_corners=False)
    expected = expected + 0.7 * cdgc.ohem_cross_entropy(logits, labels, align_corners=False)
    torch.testing.assert_close(head.auxiliary_loss(labels, logits), expected)
    with pytest.raises(ValueError, match="once per step"):
        head.auxiliary_loss(labels)


def test_dynamic_nodes_need_the_labels(images, labels):
    net = cdgc.refine(Small(), "head.1", nodes="dynamic").train()
    head = net.get_submodule("head.1")
    with pytest.raises(ValueError, match=r"with refined\.targets"):
        net(images)
    with head.targets(labels):
        net(images)
    net.eval()(images)  # inference needs none


def test_a_checkpoint_of_the_unrefined_network_loads(images):
    old = Small().eval()
    net = cdgc.refine(Small().eval(), "head.1")
    assert not torch.allclose(net(images), old(images))
    net.load_state_dict(old.state_dict())
    assert torch.equal(net(images), old(images))


def test_its_own_checkpoint_and_a_deep_copy_are_the_same_function(images):
    net = cdgc.refine(Small().eval(), "head.1")
    excite(net.get_submodule("head.1"))
    other = cdgc.refine(Small().eval(), "head.1")
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images), net(images))
    assert torch.equal(copy.deepcopy(net)(images), net(images))


def test_a_large_map_is_pooled_for_the_graph(images):
    net = cdgc.refine(Small().eval(), "head.1", max_nodes=24)
    head = net.get_submodule("head.1")
    excite(head)
    seen = []
    head.graph.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2:]))
    assert net(images).shape == (2, CLASSES, 32, 48)
    assert seen == [(4, 6)]  # 16 x 24 nodes times 24/384 in area, a quarter of each side


def test_wide_features_are_reduced(images):
    net = cdgc.refine(Small(channels=300).eval(), "head.1")
    assert net.get_submodule("head.1").graph.in_channels == 256


def test_autocast(images):
    net = cdgc.refine(Small().eval(), "head.1")
    excite(net.get_submodule("head.1"))
    with torch.autocast("cpu", torch.bfloat16):
        half = net(images)
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), net(images), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("classifier", "options", "message"),
    [
        ("head.7", {}, "no such module; its last convolutions are encoder.0, head.1"),
        ("head", {}, "is a Sequential, expected a Conv2d"),
        ("", {}, "expected a Conv2d"),
        ("head.1", {"num_classes": 7}, "num_classes is 7, but head.1 has 5"),
        ("head.1", {"max_nodes": 0}, "max_nodes must be at least 1"),
        ("head.1", {"nodes": "magic"}, "nodes must be one of"),
        ("encoder.0", {}, "stride"),
    ],
)
def test_wrong_arguments(classifier, options, message):
    with pytest.raises(ValueError, match=message):
        cdgc.refine(Small(), classifier, **options)


def test_a_classifier_that_shrinks_its_input_is_refused(images):
    net = Small()
    net.head[1] = nn.Conv2d(8, CLASSES, 3)
    cdgc.refine(net, "head.1")
    with pytest.raises(ValueError, match="expected the same size"):
        net(images)


# ---------------------------------------------------------------- networks of other libraries
def torchvision_net(name):
    models = pytest.importorskip("torchvision.models.segmentation", reason="needs torchvision")
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=CLASSES)


NETS = {
    "deeplabv3": (lambda: torchvision_net("deeplabv3_resnet50"), "classifier.4"),
    "fcn": (lambda: torchvision_net("fcn_resnet50"), "classifier.4"),
    "lraspp": (lambda: torchvision_net("lraspp_mobilenet_v3_large"), "classifier.high_classifier"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_torchvision(name, generator):
    build, classifier = NETS[name]
    net = build().eval()
    images = torch.randn(2, 3, 64, 96, generator=generator)
    labels = torch.randint(CLASSES, (2, 64, 96), generator=generator)
    expected = net(images)["out"]
    cdgc.refine(net, classifier, CLASSES)
    torch.testing.assert_close(net(images)["out"], expected)
    head = net.get_submodule(classifier)
    assert isinstance(head, RefinedClassifier)
    net.train()
    with head.targets(labels):
        loss = F.cross_entropy(net(images)["out"], labels) + head.auxiliary_loss(labels)
    loss.backward()
    assert head.coarse.weight.grad.abs().sum() > 0
