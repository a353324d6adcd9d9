"""cdgc.refine on networks of other libraries, with random weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cdgc
from cdgc.refinement import RefinedClassifier

CLASSES = 5

pytestmark = pytest.mark.slow


def torchvision_net(name):
    models = pytest.importorskip("torchvision.models.segmentation", reason="needs torchvision")
    return getattr(models, name)(weights=None, weights_backbone=None, num_classes=CLASSES)


def smp_net(name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    return getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES)


def segformer():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(num_labels=CLASSES)  # the sizes of SegFormer-B0
    return transformers.SegformerForSemanticSegmentation(config)


class TimmNet(nn.Module):
    """The last feature of a timm network and a classifier."""

    def __init__(self, name):
        super().__init__()
        timm = pytest.importorskip("timm")
        self.encoder = timm.create_model(name, features_only=True, output_stride=8)
        self.classifier = nn.Conv2d(self.encoder.feature_info.channels()[-1], CLASSES, 1)

    def forward(self, images):
        return self.classifier(self.encoder(images)[-1])


NETS = {
    "deeplabv3": (lambda: torchvision_net("deeplabv3_resnet50"), "classifier.4"),
    "fcn": (lambda: torchvision_net("fcn_resnet50"), "classifier.4"),
    "lraspp": (lambda: torchvision_net("lraspp_mobilenet_v3_large"), "classifier.high_classifier"),
    "unet": (lambda: smp_net("Unet"), "segmentation_head.0"),
    "deeplabv3plus": (lambda: smp_net("DeepLabV3Plus"), "segmentation_head.0"),
    "segformer": (segformer, "decode_head.classifier"),
    "timm": (lambda: TimmNet("resnet18"), "classifier"),
}


def logits_of(output):
    """The libraries return a tensor, a dict, or a dataclass."""
    if isinstance(output, torch.Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output["out"]


def loss_of(logits, labels):
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels)


@pytest.mark.parametrize("name", NETS)
def test_a_net_starts_unchanged_trains_a_step_and_loads_its_old_checkpoint(name, generator):
    build, classifier = NETS[name]
    net = build().eval()
    old_state = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(2, 3, 64, 96, generator=generator)
    labels = torch.randint(CLASSES, (2, 64, 96), generator=generator)
    with torch.no_grad():
        expected = logits_of(net(images))
        cdgc.refine(net, classifier, CLASSES, max_nodes=1536)
        # Exactly: the graph's message times zero is added.
        assert torch.equal(logits_of(net(images)), expected)

    head = net.get_submodule(classifier)
    assert isinstance(head, RefinedClassifier)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves U away from zero, the second reaches the graph
        with head.targets(labels):
            loss = loss_of(logits_of(net(images)), labels) + head.coarse_loss(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    missing = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    with torch.no_grad():
        assert not torch.allclose(logits_of(net.eval()(images)), expected)
        nn.init.zeros_(head.from_graph.weight)
        net.load_state_dict(old_state)
        assert torch.equal(logits_of(net(images)), expected)
