"""Public functions compute the same for tensors of any memory layout."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cdgc
from cdgc import DEFAULT_GRAPH, CDGCModule

CLASSES, HEIGHT, WIDTH = 3, 4, 5


def layouts(tensor):
    """The tensor as a transposed, a strided and an offset view of other memory."""
    pairs = itertools.combinations(range(tensor.dim()), 2)
    yield from (tensor.transpose(i, j).contiguous().transpose(i, j) for i, j in pairs)
    for dim in range(tensor.dim()):
        twice = tensor.repeat_interleave(2, dim)
        yield twice.unflatten(dim, (-1, 2)).select(dim + 1, 1)
        yield torch.cat([torch.zeros_like(tensor), tensor], dim).narrow(
            dim, tensor.shape[dim], tensor.shape[dim]
        )


def draw(seed):
    """Features, logits, targets and validity of two images, and a map of classes."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 8, HEIGHT, WIDTH, generator=g, dtype=torch.float64)
    logits = torch.randn(2, CLASSES, HEIGHT, WIDTH, generator=g, dtype=torch.float64)
    targets = torch.randint(CLASSES, (2, HEIGHT, WIDTH), generator=g)
    targets[torch.rand(targets.shape, generator=g) < 0.2] = 255
    valid = torch.rand(targets.shape, generator=g) < 0.9
    return {"x": x, "logits": logits, "targets": targets, "valid": valid}


def module(**options):
    torch.manual_seed(0)
    return CDGCModule(8, CLASSES, norm=None, **options).double()


def selection(nodes):
    found = [nodes.pixel, nodes.counts, nodes.node_index, nodes.log_weight]
    return [t for t in found if t is not None]


ROWS = [7, 0, 13]  # of the segments, 20 rows of the (2 * HEIGHT * WIDTH) in `rows`


def rows(x):
    return x.movedim(1, 3).reshape(-1, 8)[: sum(ROWS)]


# What takes maps: a function of x, logits, targets and valid, each in any layout.
OF_MAPS = {
    "cross_entropy": lambda x, logits, targets, valid: cdgc.cross_entropy(logits, targets),
    "ohem_cross_entropy": lambda x, logits, targets, valid: cdgc.ohem_cross_entropy(
        logits, targets, min_kept=7
    ),
    "global ohem_cross_entropy": lambda x, logits, targets, valid: cdgc.ohem_cross_entropy(
        logits, targets, min_kept=7, reduce="global"
    ),
    "class_map": lambda x, logits, targets, valid: cdgc.class_map(logits),
    "resize_targets": lambda x, logits, targets, valid: cdgc.resize_targets(targets, (2, 9), True),
    "select_nodes": lambda x, logits, targets, valid: selection(
        cdgc.select_nodes(
            cdgc.class_map(logits), targets, num_classes=CLASSES, nodes="dynamic", valid=valid
        )
    ),
    "soft_nodes": lambda x, logits, targets, valid: selection(
        cdgc.soft_nodes(logits, targets, valid=valid)
    ),
} | {
    name: lambda x, logits, targets, valid, graph=graph: graph(x, logits, targets, valid=valid)
    for name, graph in {
        "the default graph": module(**DEFAULT_GRAPH),
        "the paper's graph": module(),
        "uniform edges": module(edges="uniform"),
        "probable classes": module(receivers="all", message_weights="probability"),
        "topk edges to all": module(receivers="all", edges="topk", topk=2),
        "soft nodes": module(nodes="soft"),
        "a plain GCN": module(scope="image"),
    }.items()
}
# What takes rows: a function of q, k, v, (20, 8) each.
OF_ROWS = {
    "segment_attention": lambda q, k, v: cdgc.segment_attention(q, k, v, ROWS),
    "weighted segment_attention": lambda q, k, v: cdgc.segment_attention(
        q, k, v, ROWS, log_weight=v[:, 0]
    ),
    "segment_topk_attention": lambda q, k, v: cdgc.segment_topk_attention(q, k, v, ROWS, topk=3),
    "class_linear": lambda q, k, v: cdgc.class_linear(q, k[:16].unflatten(0, (2, 8)), [7, 13]),
}


def agree(function, named):
    """The result, and the gradients for a gradient of every layout, for every layout of inputs."""

    def run(inputs, layout):
        inputs = {
            name: t.detach().requires_grad_(t.is_floating_point()) for name, t in inputs.items()
        }
        out = function(**inputs)
        leaves = [t for t in inputs.values() if t.requires_grad]
        if not isinstance(out, torch.Tensor) or not out.requires_grad:
            return [out]
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        grad = list(layouts(weight))[layout] if out.dim() and layout is not None else weight
        gradients = torch.autograd.grad(out, leaves, grad, allow_unused=True)
        return [out, *(torch.zeros(()) if g is None else g for g in gradients)]

    expected = run(named, None)
    for name, tensor in named.items():
        for i, view in enumerate(layouts(tensor)):
            assert torch.equal(view, tensor)
            found = run({**named, name: view}, i % 6)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OF_MAPS)
@settings(max_examples=3)
@given(seed=st.integers(0, 999))
def test_maps(name, seed):
    agree(OF_MAPS[name], draw(seed))


@pytest.mark.parametrize("name", OF_ROWS)
@settings(max_examples=3)
@given(seed=st.integers(0, 999))
def test_rows(name, seed):
    found = draw(seed)["x"]
    agree(OF_ROWS[name], {n: rows(found.roll(i, 3)) for i, n in enumerate("qkv")})


def test_hard_pixels_of_transposed_targets():
    # p = 0.9 0.5 / 0.2 0.8 of the true class 0: the two lowest are 0.5 and 0.2.
    p = torch.tensor([[0.9, 0.5], [0.2, 0.8]]).T.contiguous().T
    logits = torch.stack([p.log(), (1 - p).log()])[None]
    targets = torch.zeros(1, 2, 2, dtype=torch.long).transpose(1, 2)
    found = cdgc.ohem_cross_entropy(logits, targets, min_kept=2)
    expected = -(torch.tensor([0.5, 0.2]).log()).mean()
    torch.testing.assert_close(found, expected)
