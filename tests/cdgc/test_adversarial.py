"""The module against the dense oracle on class maps chosen to break it, in every dtype.

Salt and pepper gives as many small segments as there can be, one class one segment longer than a
block of the fused attention's keys (512 on the CPU), one pixel per class segments of one node.
The oracle always computes in float64, from the same rounded numbers.
"""

from copy import deepcopy

import pytest
import torch
from reference import Scene, build, oracle, relative, weights_of

# Largest error of output and gradients, relative to the largest expected number. bfloat16 keeps 8
# bits: a rounding is up to 0.004, and a handful of them follow one another.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.04}
DTYPES = list(TOLERANCE)


def salt_and_pepper(g):
    return torch.randint(12, (2, 9, 11), generator=g), 12


def one_class(_):
    return torch.full((1, 23, 24), 3), 5


def one_class_per_image(_):
    return torch.tensor([4, 0])[:, None, None].expand(2, 5, 7).clone(), 5


def one_pixel_per_class(g):
    return torch.stack([torch.randperm(24, generator=g) for _ in range(2)]).view(2, 4, 6), 24


def one_node(_):
    return torch.tensor([[[1]], [[0]]]), 3


MAPS = [salt_and_pepper, one_class, one_class_per_image, one_pixel_per_class, one_node]


def all_right(coarse, m_classes):
    return coarse.clone()


def all_wrong(coarse, m_classes):
    return (coarse + 1) % m_classes  # every pixel belongs to two graphs


def all_ignored(coarse, m_classes):
    return torch.full_like(coarse, 255)


TARGETS = {"coarse": None, "right": all_right, "wrong": all_wrong, "ignored": all_ignored}


def make(class_maps, targets, dtype, channels=8, **options):
    """A scene, and a module for it in ``dtype``."""
    g = torch.Generator().manual_seed(0)
    coarse, m_classes = class_maps(g)
    logits = torch.nn.functional.one_hot(coarse, m_classes).permute(0, 3, 1, 2).to(dtype)
    shape = (coarse.shape[0], channels, *coarse.shape[1:])
    x = torch.randn(shape, generator=g, dtype=torch.float64).abs().to(dtype).requires_grad_()
    change = TARGETS[targets]
    scene = Scene(x, logits, None if change is None else change(coarse, m_classes), None)
    options["nodes"] = "coarse" if change is None else "dynamic"
    # Of order one: with steep similarities rounding decides which neighbor counts.
    module = build(scene, scale=0.3, **options)
    # Nor may it decide on which side of the ReLU a number lies, which would turn gradients on and
    # off: positive features times columns of W of one sign each are far from 0, on both sides.
    with torch.no_grad():
        w = module.graph_weight
        sign = torch.randint(2, (w.shape[0], 1, w.shape[2]), generator=g) * 2 - 1
        w.copy_(w.abs() * sign.to(dtype))
    return scene, module, options


def results(y, leaves, probe):
    """The output and the gradients of all leaves, as float64; zeros where there is no path."""
    found = torch.autograd.grad((y * probe.to(y.dtype)).sum(), leaves, allow_unused=True)
    found = [torch.zeros_like(t) if d is None else d for t, d in zip(leaves, found, strict=True)]
    return [y.detach().double(), *(d.double() for d in found)]


def errors(scene, module, options, found):
    """How far output and gradients are from the oracle's, one number each."""
    exact = deepcopy(module).double()
    x = scene.x.detach().double().requires_grad_()
    same = Scene(x, scene.logits.double(), scene.targets, None)
    nodes = module.select(scene.logits, scene.targets)
    weights = weights_of(exact)
    expected = oracle(same, weights, nodes, scale=0.3, **options)
    g = torch.Generator().manual_seed(1)
    probe = torch.randint(-1, 2, expected.shape, generator=g).double()  # the same in all dtypes
    ours = results(found, [scene.x, *(p for p in weights_of(module) if p is not None)], probe)
    theirs = results(expected, [x, *(p for p in weights if p is not None)], probe)
    return [relative(a, b) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edges", ["similarity", "uniform"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("class_maps", MAPS)
def test_equals_the_dense_form(class_maps, targets, edges, dtype):
    scene, module, options = make(class_maps, targets, dtype, edges=edges)
    found = module(*scene.inputs)
    assert found.dtype == dtype
    assert max(errors(scene, module, options, found)) <= TOLERANCE[dtype]


# In bfloat16 similarities tie, and which of them are the k largest is rounding's choice.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(
    "class_maps", [salt_and_pepper, one_class_per_image, one_pixel_per_class, one_node]
)
def test_topk_equals_the_dense_form(class_maps, targets, dtype):
    scene, module, options = make(class_maps, targets, dtype, edges="topk", topk=3)
    found = module(*scene.inputs)
    assert max(errors(scene, module, options, found)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("edges", ["similarity", "uniform"])
@pytest.mark.parametrize("class_maps", MAPS)
def test_bfloat16_autocast(class_maps, edges):
    # Parameters and features in float32, products in bfloat16, as mixed precision trains.
    scene, module, options = make(class_maps, "wrong", torch.float32, edges=edges)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(*scene.inputs)
    assert max(errors(scene, module, options, found)) <= TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edges", ["similarity", "uniform"])
def test_the_tolerances_see_a_fault(edges, dtype):
    # Two pixels out of 198 trade their classes' graphs: every tolerance above must notice.
    scene, module, options = make(salt_and_pepper, "coarse", dtype, edges=edges)
    coarse = scene.logits.argmax(1)
    first, second = coarse.view(-1)[:2].tolist()
    assert first != second
    logits = scene.logits.clone()
    logits[0, :, 0, :2] = logits[0, :, 0, :2].flip(1)
    found = module(scene.x, logits)
    assert max(errors(scene, module, options, found)) > 2 * TOLERANCE[dtype]
