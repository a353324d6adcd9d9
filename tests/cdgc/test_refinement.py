"""cdgc.refine: a network starts unchanged, trains, and keeps its checkpoints."""

import copy
import io
import os
import pickle
import socket
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cdgc
from cdgc.refinement import MAX_NODES

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
    loss = F.cross_entropy(net(images), labels) + head.coarse_loss(labels)
    loss.backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not missing


def test_the_coarse_loss_is_the_first_term_of_eq_5(images, labels):
    net = cdgc.refine(Small(), "head.1").train()
    head = net.get_submodule("head.1")
    features = net.encoder(images)
    head(features)
    coarse = head.coarse(features)
    expected = 0.6 * cdgc.cross_entropy(coarse, labels, align_corners=False)
    torch.testing.assert_close(head.coarse_loss(labels), expected)
    with pytest.raises(ValueError, match="no training step has reached"):
        head.coarse_loss(labels)


@pytest.mark.parametrize("early", [True, False])
def test_an_optimizer_built_before_refine_is_noticed(images, labels, early):
    net = Small().train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    head = cdgc.refine(net, "head.1").get_submodule("head.1")
    if not early:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def step():
        loss = F.cross_entropy(net(images), labels) + head.coarse_loss(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    if early:
        with pytest.warns(UserWarning, match=r"build the optimizer after cdgc\.refine"):
            step()
        head.from_graph.requires_grad_(False)  # left out on purpose
    step()


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


def test_a_checkpoint_loaded_by_assignment_leaves_the_two_classifiers_apart():
    net = cdgc.refine(Small(), "head.1")
    net.load_state_dict(Small().state_dict(), assign=True)
    head = net.get_submodule("head.1")
    assert torch.equal(head.coarse.weight, head.fused.weight)
    assert head.coarse.weight.data_ptr() != head.fused.weight.data_ptr()


def test_an_incomplete_checkpoint_of_the_refined_network_is_refused():
    net = cdgc.refine(Small(), "head.1")
    state = net.state_dict()
    del state["head.1.graph.merge_bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.1\.graph\.merge_bias"):
        net.load_state_dict(state)


def test_all_but_five_entries_load_for_another_number_of_classes():
    # docs/refine.md lists them.
    class More(Small):
        def __init__(self):
            super().__init__()
            self.head[1] = nn.Conv2d(8, CLASSES + 3, 1)

    saved, larger = Small(), More()
    cdgc.refine(saved, "head.1")
    cdgc.refine(larger, "head.1")
    of_classes = ("coarse.", "fused.", "from_graph.weight", "graph.graph_weight")
    of_classes += ("graph.merge_weight",)
    state = {
        key: value
        for key, value in saved.state_dict().items()
        if not key.removeprefix("head.1.").startswith(of_classes)
    }
    assert any("graph." in key for key in state)
    missing, unexpected = larger.load_state_dict(state, strict=False)
    assert not unexpected and all(
        key.removeprefix("head.1.").startswith(of_classes) for key in missing
    )


def test_its_own_checkpoint_and_a_deep_copy_are_the_same_function(images):
    net = cdgc.refine(Small().eval(), "head.1")
    excite(net.get_submodule("head.1"))
    other = cdgc.refine(Small().eval(), "head.1")
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(images), net(images))
    assert torch.equal(copy.deepcopy(net)(images), net(images))


def test_a_net_in_training_can_be_copied_pickled_and_saved(images, labels):
    net = cdgc.refine(Small(), "head.1").train()
    excite(net.get_submodule("head.1"))
    net(images)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    copies = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(file, weights_only=False),
    ]
    net.get_submodule("head.1").coarse_loss(labels)  # the step itself continues
    expected = net.eval()(images)
    for copied in copies:
        with pytest.raises(ValueError, match="no training step"):
            copied.get_submodule("head.1").coarse_loss(labels)
        assert torch.equal(copied.eval()(images), expected)
        copied.load_state_dict(Small().state_dict())  # copies load unrefined checkpoints too


def test_a_step_without_the_coarse_loss_warns(images, labels):
    net = cdgc.refine(Small(), "head.1").train()
    net(images)
    with pytest.warns(UserWarning, match="the coarse classifier is not trained"):
        net(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.get_submodule("head.1").coarse_loss(labels)
        with torch.no_grad():  # batch norm statistics, for example
            net(images)
            net(images)


def test_the_coarse_loss_of_a_net_that_does_not_use_the_classifier(images, labels):
    net = Small()
    net.unused = nn.Conv2d(8, CLASSES, 1)
    cdgc.refine(net, "unused").train()(images)
    with pytest.raises(ValueError, match="does not use this convolution"):
        net.unused.coarse_loss(labels)


def test_the_defaults_are_those_of_the_project_and_bound_the_cost():
    head = cdgc.refine(Small(), "head.1").get_submodule("head.1")
    graph = head.graph
    found = {name: getattr(graph, name) for name in ("nodes", "receivers", "softmax", "heads")}
    assert {**found, "distance_bias": graph.distance is not None} == cdgc.DEFAULT_GRAPH
    assert head.max_nodes == MAX_NODES == 16384


@pytest.mark.parametrize(("width", "heads"), [(8, 4), (6, 3), (10, 2), (7, 1), (1, 1)])
def test_the_heads_divide_the_width(width, heads, images):
    net = cdgc.refine(Small(channels=width).eval(), "head.1")
    assert net.get_submodule("head.1").graph.heads == heads
    assert net(images).isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {"softmax": "class", "receivers": "nodes"},
        {"softmax": "class", "nodes": "soft"},
        {"softmax": "class", "edges": "topk"},
        {"heads": 2, "distance_bias": False},
    ],
)
def test_options_replace_the_defaults(options, images):
    net = cdgc.refine(Small().eval(), "head.1", **options)
    graph = net.get_submodule("head.1").graph
    assert graph.distance is None
    assert graph.heads == options.get("heads", 1)
    assert net(images).isfinite().all()


@pytest.mark.filterwarnings("ignore:head.1.graph was saved")
def test_a_checkpoint_of_another_graph_is_refused(images):
    options = {"softmax": "class"}
    net = cdgc.refine(Small().eval(), "head.1", **options)
    excite(net.get_submodule("head.1"))
    state = net.state_dict()
    by_default = cdgc.refine(Small(), "head.1")
    with pytest.raises(RuntimeError, match=r"Missing key.*distance"):
        by_default.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*distance"):
        net.load_state_dict(by_default.state_dict())
    same = cdgc.refine(Small().eval(), "head.1", **options)
    same.load_state_dict(state)
    assert torch.equal(same(images), net(images))


def test_a_checkpoint_of_another_graph_warns_of_the_reason():
    by_class = cdgc.refine(Small(), "head.1", softmax="class")
    by_default = cdgc.refine(Small(), "head.1")
    with pytest.warns(UserWarning, match=r"head\.1\.graph was saved with .*softmax='class'"):
        by_default.load_state_dict(by_class.state_dict(), strict=False)
    with pytest.warns(UserWarning, match=r"distance_bias=True, but this one was built with"):
        by_class.load_state_dict(by_default.state_dict(), strict=False)


def test_a_network_in_bfloat16_is_refined_in_bfloat16(images):
    net = cdgc.refine(Small().eval().bfloat16(), "head.1")
    excite(net.get_submodule("head.1"))
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    expected = copy.deepcopy(net).float()(images)
    torch.testing.assert_close(net(images.bfloat16()).float(), expected, atol=0.1, rtol=0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # raised by torch.compile
def test_a_refined_network_compiles(images):
    net = cdgc.refine(Small().eval(), "head.1")
    excite(net.get_submodule("head.1"))
    torch.testing.assert_close(torch.compile(net, backend="eager")(images), net(images))


def test_a_large_map_is_pooled_for_the_graph(images):
    net = cdgc.refine(Small().eval(), "head.1", max_nodes=24)
    head = net.get_submodule("head.1")
    excite(head)
    seen = []
    head.graph.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2:]))
    assert net(images).shape == (2, CLASSES, 32, 48)
    assert seen == [(4, 6)]  # 16 x 24 nodes times 24/384 in area, a quarter of each side


@pytest.mark.parametrize("size", [(16, 24), (1, 5000), (5000, 1), (7, 1000), (100, 100)])
@pytest.mark.parametrize("max_nodes", [1, 24, 383])
def test_pooled_maps_have_at_most_max_nodes(size, max_nodes):
    head = cdgc.refine(Small(), "head.1", max_nodes=max_nodes).get_submodule("head.1")
    height, width = head._graph_size(torch.empty(1, 8, *size))
    assert 0 < height * width <= max_nodes
    assert height <= size[0] and width <= size[1]


def test_without_a_limit_no_map_is_pooled():
    head = cdgc.refine(Small(), "head.1", max_nodes=None).get_submodule("head.1")
    assert head._graph_size(torch.empty(1, 8, 1000, 1000)) is None


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
        ("head.7", {}, "no such module; its last convolutions are encoder.0, head.1, binary"),
        ("head", {}, "is a Sequential, expected a Conv2d"),
        ("", {}, "expected a Conv2d"),
        ("head.1", {"num_classes": 7}, "num_classes is 7, but head.1 has 5"),
        ("head.1", {"max_nodes": 0}, "max_nodes must be at least 1"),
        ("head.1", {"nodes": "magic"}, "nodes must be one of"),
        ("encoder.0", {}, "stride"),
        ("binary", {}, "two or more classes, got one channel"),
    ],
)
def test_wrong_arguments(classifier, options, message):
    net = Small()
    net.binary = nn.Conv2d(8, 1, 1)
    with pytest.raises(ValueError, match=message):
        cdgc.refine(net, classifier, **options)


def test_a_classifier_that_shrinks_its_input_is_refused(images):
    net = Small()
    net.head[1] = nn.Conv2d(8, CLASSES, 3)
    cdgc.refine(net, "head.1")
    with pytest.raises(ValueError, match="expected the same size"):
        net(images)


# ---- two processes ----
def _train(rank, port, folder):
    """Two steps of SGD on the images of one process, which miss most classes."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = cdgc.refine(Small(), "head.1", norm=None).train()
    net.head[0].p = 0.0
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):  # without a gradient for each parameter, the second step raises
        images = torch.randn(1, 3, 16, 16, generator=generator)
        labels = torch.full((1, 16, 16), rank)
        head = model.module.get_submodule("head.1")
        with head.targets(labels):
            loss = F.cross_entropy(model(images), labels) + head.coarse_loss(labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.module.state_dict(), os.path.join(folder, f"{rank}.pth"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_training_keeps_the_processes_equal(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Fresh interpreters: a fork would inherit the thread pool of a torch that has already run.
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)])
        for rank in (0, 1)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    states = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert states[0]["head.1.from_graph.weight"].any()


if __name__ == "__main__":
    _train(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
