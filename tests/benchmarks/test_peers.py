"""What the graph is measured against computes what it says."""

import pytest
import torch
from maps import blob_map, label_maps, one_hot_logits, pair_share
from peers import DenseGraph, FusedAttention, LinearPart, NonLocal, PositionAttention
from PIL import Image

from cdgc import CDGCModule


def scene(size=9, channels=8, classes=5):
    torch.manual_seed(0)
    logits = one_hot_logits(blob_map(size, classes, present=4), classes)
    return torch.randn(1, channels, size, size), logits


def test_dense_form_is_the_graph():
    x, logits = scene()
    graph = CDGCModule(8, 5, nodes="coarse")
    assert torch.allclose(DenseGraph(graph)(x, logits), graph(x, logits), atol=1e-5)


@pytest.mark.parametrize("kind", [NonLocal, PositionAttention])
def test_fused_is_the_usual_form(kind):
    x, _ = scene()
    fused, usual = kind(8), kind(8, fused=False)
    for p in fused.parameters():  # some start at 0, which would hide the attention
        torch.nn.init.normal_(p, std=0.3)
    usual.load_state_dict(fused.state_dict())
    assert (fused(x) - x).abs().max() > 0.01
    assert torch.allclose(fused(x), usual(x), atol=1e-5)


def test_fused_attention_is_the_graph_of_one_class():
    x, _ = scene()
    graph = CDGCModule(8, 1, nodes="coarse", norm=None)
    peer = FusedAttention(8)
    for name, p in (("phi", graph.phi), ("phi_prime", graph.phi_prime)):
        getattr(peer, name).data = p[0].data
    peer.w.data, peer.u.data = graph.graph_weight[0].data, graph.merge_weight[0].data
    assert torch.allclose(peer(x), graph(x, x[:, :1]), atol=1e-5)


def test_linear_part_lacks_the_attention_alone():
    x, logits = scene()
    graph, linear = (kind(8, 5, nodes="coarse", norm=None) for kind in (CDGCModule, LinearPart))
    linear.load_state_dict(graph.state_dict())
    assert not torch.allclose(linear(x, logits), graph(x, logits), atol=1e-2)
    linear(x, logits).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in linear.parameters())


def test_blob_maps_have_their_shares():
    found = blob_map(97, 19)
    counts = torch.bincount(found.flatten(), minlength=19).sort(descending=True).values
    assert (counts > 0).sum() == 12
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.2)  # Zipf
    assert pair_share(found) <= 0.2
    assert pair_share(torch.zeros(4, 4, dtype=torch.int64)) == 1.0
    assert torch.equal(one_hot_logits(found, 19).argmax(1)[0], found)


def test_label_maps(tmp_path):
    # 17 columns aligned to 3 nodes: columns 0, 8, 16 of the labels, then one node to the right.
    labels = torch.zeros(17, 17, dtype=torch.uint8)
    labels[:, 4:12], labels[:, 12:] = 1, 2
    labels[:, 14:] = 255  # nearest class: 2
    Image.fromarray(labels.numpy()).save(tmp_path / "x.png")
    coarse, targets = label_maps(tmp_path / "x.png")
    assert coarse.tolist() == [[2, 0, 1]] * 3
    assert torch.equal(targets, labels.long())
