"""The exportable form of the class graph computes what the module computes."""

import pytest
import torch
from torch import nn

from cdgc import CDGCModule
from cdgcnet.export.graph import ExportableGraph
from cdgcnet.export.network import ExportablePyramidPooling
from cdgcnet.modeling.context_modules import PyramidPooling

SIZES = [(1, 1, 1), (2, 7, 5), (3, 1, 9), (2, 16, 20)]
OPTIONS = [
    {},
    {"nodes": "soft"},
    {"edges": "uniform"},
    {"edges": "topk", "topk": 5},
    {"edges": "topk", "topk": 5, "topk_weights": "equal"},
    {"scope": "image"},
    {"scope": "image", "edges": "uniform"},
    {"scope": "image", "edges": "topk", "topk": 7},
    {"shared_phi": False, "scale": "sqrt", "norm": None, "relu": False},
]
WEIGHTED = [
    {"message_weights": "mean"},
    {"message_weights": "probability"},
    {"message_weights": "probability", "edges": "uniform"},
    {"message_weights": "mean", "nodes": "soft"},
]
CASES = [{**o, "receivers": r} for o in OPTIONS for r in ("nodes", "all")]
CASES += [{**o, "receivers": "all"} for o in WEIGHTED]
JOINT = {"receivers": "all", "softmax": "image"}  # the default of the networks
CASES += [
    JOINT,
    {**JOINT, "heads": 4, "distance_bias": True, "scale": "sqrt"},
    {**JOINT, "heads": 2, "distance_bias": True, "scope": "image"},
]


def graph_of(**options):
    torch.manual_seed(0)
    graph = CDGCModule(16, 5, **options).eval()
    if isinstance(graph.norm, nn.BatchNorm2d):
        graph.norm.running_mean.normal_()
        graph.norm.running_var.uniform_(0.5, 2)
    return graph


def inputs_of(batch, height, width):
    """Features and coarse logits in which class 3 is absent."""
    generator = torch.Generator().manual_seed(height)
    features = torch.randn(batch, 16, height, width, generator=generator).relu()
    logits = torch.randn(batch, 5, height, width, generator=generator)
    logits[:, 3] = -9
    return features, logits


@pytest.mark.parametrize("options", CASES, ids=str)
@torch.no_grad()
def test_equals_the_module(options):
    graph = graph_of(**options)
    exportable = ExportableGraph(graph).eval()
    for size in SIZES:
        inputs = inputs_of(*size)
        torch.testing.assert_close(exportable(*inputs), graph(*inputs), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other():
    # A class that is absent from one image only is masked there, not skipped.
    graph = graph_of(receivers="all")
    exportable = ExportableGraph(graph).eval()
    features, logits = inputs_of(2, 6, 6)
    logits[0, 2] = -9
    together = exportable(features, logits)
    for i in range(2):
        alone = exportable(features[i : i + 1], logits[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 5), (6, 6), (13, 29)])
@torch.no_grad()
def test_pooling_matrices_equal_adaptive_pooling(size):
    module = PyramidPooling(8).eval()
    x = torch.randn(2, 8, *size)
    torch.testing.assert_close(ExportablePyramidPooling(module)(x), module(x), rtol=1e-5, atol=1e-5)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="training mode"):
        ExportableGraph(graph_of().train())
