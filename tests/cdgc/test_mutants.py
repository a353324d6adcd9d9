"""Mutation tests: the comparison with the oracle must detect every deliberate fault.

A fault is a function `fault(case) -> output`. `case` holds a scene in which everything occurs, a
module, the correct nodes, and a way to replace one pure function of the implementation. The faults
in `ESSENTIAL` cover one mistake per part of the method; all others are marked `slow`.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from joint_reference import dense
from reference import PARTS, Scene, build, deviation, make_scene, oracle, weights_of
from torch import nn

import cdgc.module
import cdgc.propagation
from cdgc import NodeSet, class_map, resize_targets, select_nodes

SEEN = 1e-3  # smallest deviation that counts as detected, a million times the rounding error


@dataclass
class Case:
    scene: Scene
    module: nn.Module
    nodes: NodeSet
    monkeypatch: pytest.MonkeyPatch

    def without_column(self, column):
        """The output without the first or second node of every pixel."""
        node_index = self.nodes.node_index.clone()
        node_index[:, column] = -1
        return self.propagate(node_index=node_index)

    def propagate(self, **changes):
        """The output with fields of the NodeSet replaced."""
        return self.module.propagate(self.scene.x, replace(self.nodes, **changes))

    def rerun(self, **changes):
        """Select and propagate again, with other inputs."""
        s = replace(self.scene, **changes)
        return self.module(*s.inputs, valid=s.valid)

    def swapped(self, name, make):
        """The output with a pure function of the implementation replaced by make(original)."""
        owner = cdgc.module if hasattr(cdgc.module, name) else cdgc.propagation
        self.monkeypatch.setattr(owner, name, make(getattr(owner, name)))
        return self.rerun()

    def with_weights(self, **weights):
        """The output with other parameters (gradients still reach the module's own)."""
        named = {f"module.{k}": v for k, v in weights.items()}
        return torch.func.functional_call(Forward(self.module), named, (self.scene,))


class Forward(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, scene):
        return self.module(*scene.inputs, valid=scene.valid)


def make_case(monkeypatch, options, training=True):
    scene = make_scene(
        21, batch=2, channels=4, classes=4, h=4, w=4, stride=8, agree=0.5, ignore=0.2, padding=0.25
    )
    module = build(scene, **options).train(training)
    nodes = module.select(*scene.inputs[1:], valid=scene.valid)
    return Case(scene, module, nodes, monkeypatch)


def by_segment(function):
    """function(q, k, v) of one segment -> a fault for segment_attention."""

    def attend(q, k, v, lengths, scale, *rest):
        blocks = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([function(*block, scale) for block in blocks if len(block[0])])

    return lambda _: attend


def zero_features(q, k, v, scale):
    # The other pixels of the 4 x 4 map have zero features, so each adds exp(0) to the sum.
    f = scale * q @ k.T
    others = 16 - len(q)
    return (torch.cat([f, f.new_zeros(len(q), others)], 1).softmax(1))[:, : len(q)] @ v


def on_call_of(name, fault):
    """Changes the output of class_linear where it is called with the parameter `name`."""

    def run(case):
        target = getattr(case.module, name)

        def make(original):
            def linear(x, weight, lengths):
                y = original(x, weight, lengths)
                return fault(y) if weight is target else y

            return linear

        return case.swapped("class_linear", make)

    return run


def without_relu(case):
    """U is applied to A X W without the ReLU."""
    kept = []

    def make(original):
        def linear(x, weight, lengths):
            if weight is case.module.merge_weight:
                x = kept.pop()
            y = original(x, weight, lengths)
            if weight is case.module.graph_weight:
                kept.append(y)
            return y

        return linear

    return case.swapped("class_linear", make)


def only_first_node_backward(case):
    """The correct output, but hard positives send no gradient back."""

    def summed(rows, node_index):  # through autograd; the implementation fixes its backward
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[node_index].sum(1)

    def scatter(rows, nodes):
        part = summed(rows, nodes.node_index[:, :1])
        return summed(rows, nodes.node_index).detach() + part - part.detach()

    return case.swapped("nodes_to_pixels", lambda _: scatter)


def means_over_all_pixels(original):
    class Wrong(original):
        def mean(self, pixels):
            return super().mean(pixels) * self.size / 16

    return Wrong


def nearest(targets, size, align_corners):
    rows, cols = (
        torch.arange(n) * full // n for n, full in zip(size, targets.shape[1:], strict=True)
    )
    return targets[:, rows[:, None], cols]


def images_merged(case):
    counts = torch.zeros_like(case.nodes.counts)
    counts[:, 0] = case.nodes.counts.sum(1)
    return case.propagate(counts=counts)


def one_node_too_far(case):
    counts = case.nodes.counts.clone()
    first, second = counts.flatten().nonzero().flatten()[:2].tolist()
    counts.view(-1)[first] -= 1
    counts.view(-1)[second] += 1
    return case.propagate(counts=counts)


def selected(case, **changes):
    """Propagate over nodes chosen by select_nodes with other arguments."""
    s = case.scene
    found = resize_targets(s.targets, tuple(s.x.shape[2:]), True)
    arguments = {
        "coarse_map": class_map(s.logits),
        "target_map": found,
        "num_classes": 4,
        "nodes": "dynamic",
        "valid": s.valid,
        **changes,
    }
    return case.module.propagate(s.x, select_nodes(**arguments))


def memberships_of_all(case):
    p = case.scene.logits.log_softmax(1).permute(0, 2, 3, 1).flatten(0, 2)  # (B*N, M)
    classes = torch.arange(4).repeat_interleave(case.nodes.counts.sum(1))
    return case.propagate(log_weight=p[case.nodes.pixel, classes])


def ignored_kept(case):
    s = case.scene
    at_nodes = s.targets[:, ::8, ::8]
    filled = torch.where(at_nodes == 255, class_map(s.logits), at_nodes)
    return selected(case, target_map=filled)


def parts_without(name):
    return lambda case: selected(case, samples=tuple(p for p in PARTS if p != name))


def flipped(name):
    return lambda case: case.with_weights(**{name: getattr(case.module, name).flip(0)})


def transposed(name):
    return lambda case: case.with_weights(**{name: getattr(case.module, name).mT})


SIM, UNI = {"edges": "similarity", "scale": "sqrt"}, {"edges": "uniform"}
TOP = {"edges": "topk", "topk": 3, "scale": "sqrt"}
EQUAL = {"edges": "topk", "topk": 6, "topk_weights": "equal"}
OWN = {**SIM, "shared_phi": False}
SOFT = {**SIM, "nodes": "soft"}

FAULTS = {
    # nodes (Eq. 4)
    "easy positives dropped": (SIM, parts_without("easy_positive")),
    "hard positives dropped": (SIM, parts_without("hard_positive")),
    "hard negatives dropped": (SIM, parts_without("hard_negative")),
    "coarse nodes in dynamic mode": (SIM, lambda c: selected(c, nodes="coarse")),
    "ignored pixels kept": (SIM, ignored_kept),
    "ignored pixels kept, uniform": (UNI, ignored_kept),
    "padding kept": (SIM, lambda c: c.rerun(valid=None)),
    "padding kept, uniform": (UNI, lambda c: c.rerun(valid=None)),
    "plain nearest labels": (SIM, lambda c: c.swapped("resize_targets", lambda _: nearest)),
    "labels for the other alignment": (
        SIM,
        lambda c: c.swapped(
            "resize_targets", lambda f: lambda t, size, align: f(t, size, not align)
        ),
    ),
    "rows and columns of labels swapped": (
        SIM,
        lambda c: c.swapped("resize_targets", lambda f: lambda *a: f(*a).mT),
    ),
    "argmin for argmax": (SIM, lambda c: c.rerun(logits=-c.scene.logits)),
    "images merged": (SIM, images_merged),
    "images merged, uniform": (UNI, images_merged),
    "images merged, top-k": (TOP, images_merged),
    "segment boundary off by one": (SIM, one_node_too_far),
    "soft nodes as coarse ones": (SOFT, lambda c: selected(c, nodes="coarse")),
    "memberships forgotten": (SOFT, lambda c: c.propagate(log_weight=None)),
    "memberships of the neighbors forgotten": (
        SOFT,
        lambda c: c.swapped("segment_attention", lambda f: lambda *a: f(*a[:5])),
    ),
    "memberships squared": (SOFT, lambda c: c.propagate(log_weight=2 * c.nodes.log_weight)),
    "memberships normalized over all classes": (SOFT, memberships_of_all),
    "memberships in the order of the pixels": (
        SOFT,
        lambda c: c.propagate(log_weight=c.nodes.log_weight[c.nodes.pixel.argsort(stable=True)]),
    ),
    # edges (Eq. 2-3)
    "zero features for -inf": (
        SIM,
        lambda c: c.swapped("segment_attention", by_segment(zero_features)),
    ),
    "mean over all pixels": (
        UNI,
        lambda c: c.swapped("UniformGraphs", lambda original: means_over_all_pixels(original)),
    ),
    "softmax over the other axis": (
        SIM,
        lambda c: c.swapped(
            "segment_attention", by_segment(lambda q, k, v, s: (s * q @ k.T).softmax(0) @ v)
        ),
    ),
    "similarity transposed": (
        SIM,
        lambda c: c.swapped("segment_attention", lambda f: lambda q, k, *a: f(k, q, *a)),
    ),
    "phi and phi' swapped": (
        SIM,
        lambda c: c.with_weights(phi=c.module.phi_prime, phi_prime=c.module.phi),
    ),
    "phi transposed": (SIM, transposed("phi")),
    "phi of another class": (OWN, flipped("phi")),
    "phi' of another class": (OWN, flipped("phi_prime")),
    "scale forgotten": (
        SIM,
        lambda c: c.swapped(
            "segment_attention", lambda f: lambda q, k, v, n, scale, *a: f(q, k, v, n, 1.0, *a)
        ),
    ),
    "scale forgotten, top-k": (
        TOP,
        lambda c: c.swapped(
            "segment_topk_attention", lambda f: lambda q, k, v, n, s, *a: f(q, k, v, n, 1.0, *a)
        ),
    ),
    "one neighbor more": (
        TOP,
        lambda c: c.swapped(
            "segment_topk_attention",
            lambda f: lambda q, k, v, n, s, t, w: f(q, k, v, n, s, t + 1, w),
        ),
    ),
    "one neighbor fewer": (
        TOP,
        lambda c: c.swapped(
            "segment_topk_attention",
            lambda f: lambda q, k, v, n, s, t, w: f(q, k, v, n, s, t - 1, w),
        ),
    ),
    "least similar for most similar": (
        TOP,
        lambda c: c.swapped("segment_topk_attention", lambda f: lambda q, *a: f(-q, *a)),
    ),
    "equal for softmax weights": (
        TOP,
        lambda c: c.swapped("segment_topk_attention", lambda f: lambda *a: f(*a[:6], "equal")),
    ),
    "softmax for equal weights": (
        EQUAL,
        lambda c: c.swapped("segment_topk_attention", lambda f: lambda *a: f(*a[:6], "softmax")),
    ),
    "equal weights of small segments 1/k": (
        EQUAL,
        lambda c: c.swapped(
            "segment_topk_attention",
            lambda f: (
                lambda q, k, v, n, *a: (
                    f(q, k, v, n, *a) * torch.cat([v.new_full((m, 1), min(m, 6) / 6) for m in n])
                )
            ),
        ),
    ),
    "similarity detached": (
        SIM,
        lambda c: c.swapped("segment_attention", lambda f: lambda q, *a: f(q.detach(), *a)),
    ),
    "features detached": (
        SIM,
        lambda c: c.swapped(
            "segment_attention", lambda f: lambda q, k, v, *a: f(q, k, v.detach(), *a)
        ),
    ),
    # propagation (Eq. 1) and the merge
    "bias in the grouped W": (SIM, on_call_of("graph_weight", lambda y: y + 0.1)),
    "norm before the merge": (SIM, on_call_of("graph_weight", lambda y: y / y.std(0))),
    "no ReLU": (SIM, without_relu),
    "no ReLU, uniform": (UNI, without_relu),
    "ReLU after U too": (SIM, on_call_of("merge_weight", torch.relu)),
    "W of another class": (SIM, flipped("graph_weight")),
    "W transposed": (SIM, transposed("graph_weight")),
    "U of another class": (SIM, flipped("merge_weight")),
    "U transposed": (SIM, transposed("merge_weight")),
    "one W for all classes": (
        SIM,
        lambda c: c.with_weights(graph_weight=c.module.graph_weight[:1].expand(4, -1, -1)),
    ),
    "hard positives not merged": (
        SIM,
        lambda c: c.without_column(1),
    ),
    "coarse nodes not merged": (
        SIM,
        lambda c: c.without_column(0),
    ),
    "hard positives without gradient": (SIM, only_first_node_backward),
    "mean over the classes for the sum": (
        SIM,
        lambda c: c.swapped(
            "nodes_to_pixels",
            lambda f: (
                lambda rows, nodes: (
                    f(rows, nodes) / (nodes.node_index >= 0).sum(1, keepdim=True).clamp(min=1)
                )
            ),
        ),
    ),
    "no bias outside the sets": (
        SIM,
        lambda c: (
            c.rerun()
            - c.module.merge_bias[:, None, None]
            * (c.nodes.node_index < 0).all(1).reshape(2, 1, 4, 4)
        ),
    ),
    "input added": (SIM, lambda c: c.rerun() + c.scene.x),
    "rows and columns swapped": (SIM, lambda c: c.rerun().mT),
}


# One fault per part of the method.
ESSENTIAL = {
    "hard positives dropped",
    "ignored pixels kept",
    "padding kept",
    "labels for the other alignment",
    "images merged",
    "segment boundary off by one",
    "memberships forgotten",
    "zero features for -inf",
    "mean over all pixels",
    "softmax over the other axis",
    "phi of another class",
    "scale forgotten",
    "one neighbor fewer",
    "similarity detached",
    "bias in the grouped W",
    "no ReLU",
    "W of another class",
    "U transposed",
    "hard positives without gradient",
}


def test_the_essential_faults_exist():
    assert set(FAULTS) >= ESSENTIAL


@pytest.mark.parametrize(
    "name",
    [n if n in ESSENTIAL else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS],
)
def test_fault_is_detected(name, monkeypatch):
    options, fault = FAULTS[name]
    case = make_case(monkeypatch, options)
    expected = oracle(case.scene, weights_of(case.module), case.nodes, **options)
    # Without the fault this case agrees, so the deviation below is due to the fault alone.
    assert deviation(case.scene, case.rerun(), expected, case.module) <= 1e-10
    expected = oracle(case.scene, weights_of(case.module), case.nodes, **options)
    assert deviation(case.scene, fault(case), expected, case.module) > SEEN


def with_arguments(**changes):
    """Other arguments for joint_messages."""
    return lambda c: c.swapped(
        "joint_messages", lambda f: lambda *a, **k: f(*a, **{**k, **changes})
    )


JOINT = {"receivers": "all", "softmax": "image", "heads": 2, "distance_bias": True, "scale": "sqrt"}
JOINT_FAULTS = {
    "scale forgotten": with_arguments(scale=1.0),
    "distances forgotten": with_arguments(distance=None),
    "rows and columns of the distances swapped": lambda c: c.swapped(
        "JointOptions", lambda f: lambda size, *a: f((size[1], size[0]), *a)
    ),
    "nodes at the places of their neighbors": lambda c: c.swapped(
        "joint_messages", lambda f: lambda x, nodes, pixel, *a, **k: f(x, nodes, pixel ^ 1, *a, **k)
    ),
    "hard positives dropped": lambda c: selected(c, nodes="coarse"),
    "phi and phi' swapped": lambda c: c.with_weights(
        phi=c.module.phi_prime, phi_prime=c.module.phi
    ),
    "W of another class": flipped("graph_weight"),
    "U of another class": flipped("merge_weight"),
    "one softmax per class": lambda c: c.swapped("JointOptions", lambda _: lambda *a: None),
}


@pytest.mark.parametrize("name", JOINT_FAULTS)
def test_fault_of_the_joint_softmax_is_detected(name, monkeypatch):
    scene = make_scene(
        21, batch=2, channels=4, classes=4, h=4, w=5, stride=8, agree=0.5, ignore=0.2, padding=0
    )
    module = build(scene, **JOINT)
    nodes = module.select(*scene.inputs[1:])
    case = Case(scene, module, nodes, monkeypatch)
    expected = dense(scene, module, nodes)
    assert deviation(scene, case.rerun(), expected, module) <= 1e-10
    expected = dense(scene, module, nodes)
    assert deviation(scene, JOINT_FAULTS[name](case), expected, module) > SEEN


def test_targets_used_in_evaluation_are_detected(monkeypatch):
    case = make_case(monkeypatch, SIM, training=False)
    expected = oracle(case.scene, weights_of(case.module), case.nodes, training=False, **SIM)
    assert (
        deviation(
            case.scene,
            case.module.train().propagate(
                case.scene.x, case.module.select(*case.scene.inputs[1:], valid=case.scene.valid)
            ),
            expected,
            case.module,
        )
        > SEEN
    )


@pytest.mark.parametrize("ratio", [0.0, 0.8, 1.0])
def test_another_fraction_of_easy_positives_is_detected(ratio, monkeypatch):
    # The oracle takes the random choice from the NodeSet after checking its size.
    case = make_case(monkeypatch, {**SIM, "easy_ratio": ratio})
    with pytest.raises(AssertionError):
        oracle(case.scene, weights_of(case.module), case.nodes, **SIM, easy_ratio=0.5)


def test_unsorted_or_duplicate_nodes_are_detected(monkeypatch):
    case = make_case(monkeypatch, SIM)
    for pixel in (case.nodes.pixel.flip(0), torch.zeros_like(case.nodes.pixel)):
        with pytest.raises(AssertionError):
            oracle(case.scene, weights_of(case.module), replace(case.nodes, pixel=pixel), **SIM)
