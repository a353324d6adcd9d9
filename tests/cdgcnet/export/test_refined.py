"""Networks of other libraries with a class graph can be exported."""

import copy

import pytest
import torch
from torch import nn

import cdgc
from cdgcnet.export.refined import exportable_copy


def trained_graph(net):
    """Weights with which the graph changes the prediction; cdgc.refine starts at zero."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, cdgc.RefinedClassifier):
            module.from_graph.weight.data.normal_()
            module.coarse.weight.data.normal_()
    return net.eval()


def small_net(**options):
    net = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 5, 1))
    return trained_graph(cdgc.refine(net, classifier="2", max_nodes=None, **options))


@torch.no_grad()
def test_the_copy_computes_the_same_and_leaves_the_network_alone():
    net = small_net().double()  # in float32, rounding makes 1e-5 of a difference
    before = copy.deepcopy(net.state_dict())
    exportable = exportable_copy(net)
    for size in ((1, 1), (9, 40), (64, 48)):
        images = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(exportable(images), net(images), rtol=1e-10, atol=1e-10)
    assert isinstance(net[2].graph, cdgc.CDGCModule)
    assert all(parameter.requires_grad for parameter in net.parameters())
    torch.testing.assert_close(net.state_dict(), before)


@torch.no_grad()
def test_a_classifier_or_a_graph_may_be_the_whole_network():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 7, dtype=torch.float64)
    coarse_logits = torch.randn(2, 5, 9, 7, dtype=torch.float64)
    classifier = small_net()[2].double()
    exportable = exportable_copy(classifier)
    torch.testing.assert_close(exportable(x), classifier(x), rtol=1e-10, atol=1e-10)
    graph = cdgc.CDGCModule(16, 5, **cdgc.DEFAULT_GRAPH).double().eval()
    exportable = exportable_copy(graph)
    assert not exportable.training
    assert not any(parameter.requires_grad for parameter in exportable.parameters())
    expected = graph(x, coarse_logits)
    torch.testing.assert_close(exportable(x, coarse_logits), expected, rtol=1e-10, atol=1e-10)


def test_wrong_use_is_refused():
    net = small_net()
    with pytest.raises(ValueError, match="training mode"):
        exportable_copy(net.train())
    with pytest.raises(ValueError, match="no class graph"):
        exportable_copy(nn.Conv2d(3, 4, 1).eval())
    net[2].max_nodes = 100
    with pytest.raises(ValueError, match=r"^2 pools feature maps of more than max_nodes=100"):
        exportable_copy(net.eval())
    with pytest.raises(ValueError, match=r"^RefinedClassifier pools feature maps"):
        exportable_copy(net[2])


@pytest.mark.slow
@torch.no_grad()
def test_fcn_of_torchvision(tmp_path):
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    pytest.importorskip("onnxscript", reason="needs the extra [export]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    features = models._utils.IntermediateLayerGetter(models.resnet18(), {"layer4": "out"})
    net = FCN(features, FCNHead(512, 5))
    net = trained_graph(cdgc.refine(net, "classifier.4", max_nodes=None))
    exportable = exportable_copy(net)
    dynamic = torch.export.Dim.DYNAMIC
    images = torch.randn(2, 3, 600, 600)  # more than one block of nodes
    program = torch.export.export(
        exportable, (images,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
    )
    torch.onnx.export(
        program, dynamo=True, input_names=["images"], opset_version=18, verbose=False
    ).save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for size in ((2, 3, 600, 600), (1, 3, 97, 200), (3, 3, 64, 64)):
        images = torch.randn(*size)
        expected = net(images)["out"]
        tolerance = {"rtol": 0, "atol": 1e-4 * max(1, float(expected.abs().max()))}
        torch.testing.assert_close(program.module()(images)["out"], expected, **tolerance)
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, **tolerance)
