"""The loss terms of Eq. 5, computed by hand."""

from math import log

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cdgcnet.modeling.head_losses import HeadLosses
from cdgcnet.modeling.predictions import HeadOutput

LN2 = log(2)


def logits_of(probabilities):
    """Two-class logits (1, 2, 1, n) whose softmax gives class 0 these probabilities."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None]


# Two pixels of class 0 and 1. p(true): coarse 1/2, 1/4; refined 9/10, 1/2; aux 1/2, 1/2.
OUTPUT = HeadOutput(
    refined=logits_of([0.9, 0.5]), coarse=logits_of([0.5, 0.75]), aux=logits_of([0.5, 0.5])
)
TARGETS = torch.tensor([[[0, 1]]])


def test_weighted_losses_by_hand():
    losses = HeadLosses(ohem_thresh=0.7, ohem_min_kept=1)
    found = losses(OUTPUT, TARGETS)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {
            "loss_coarse": 0.6 * (LN2 + 2 * LN2) / 2,  # ln 2 and ln 4, mean of two pixels
            "loss_refined": 0.7 * LN2,  # 9/10 is above the threshold 0.7
            "loss_aux": 0.4 * LN2,
        }
    )


def test_class_weights_by_hand():
    # Weights 1 and 3: coarse (1*ln 2 + 3*ln 4) / 4 = 7/4 ln 2.
    losses = HeadLosses(class_weights=[1.0, 3.0], ohem_min_kept=2)
    found = losses(OUTPUT, TARGETS)
    assert found["loss_coarse"].item() == pytest.approx(0.6 * 7 / 4 * LN2)
    assert found["loss_aux"].item() == pytest.approx(0.4 * LN2)
    assert found["loss_refined"].item() == pytest.approx(0.7 * (-log(0.9) + 3 * LN2) / 4)


def test_class_weights_are_not_saved():
    # A model trained with class weights loads into one that has none.
    assert not HeadLosses(class_weights=[1.0, 3.0]).state_dict()


def test_ignored_pixels_are_no_part_of_the_mean():
    losses = HeadLosses(ohem_min_kept=2)
    found = losses(OUTPUT, torch.tensor([[[255, 1]]]))
    assert found["loss_coarse"].item() == pytest.approx(0.6 * 2 * LN2)
    assert found["loss_refined"].item() == pytest.approx(0.7 * LN2)
    assert found["loss_aux"].item() == pytest.approx(0.4 * LN2)


def test_baseline_loss_by_hand():
    losses = HeadLosses(baseline_weight=0.5)
    found = losses(HeadOutput(OUTPUT.coarse, aux=OUTPUT.aux), TARGETS)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {"loss_baseline": 0.5 * 1.5 * LN2, "loss_aux": 0.4 * LN2}
    )


def test_baseline_ohem_by_hand():
    # p(true) is 1/2 and 1/4. Only that of the second pixel is below 0.4: ln 4 = 2 ln 2.
    losses = HeadLosses(baseline="ohem", ohem_thresh=0.4, ohem_min_kept=1)
    found = losses(HeadOutput(OUTPUT.coarse, aux=OUTPUT.aux), TARGETS)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {"loss_baseline": 2 * LN2, "loss_aux": 0.4 * LN2}
    )


def test_the_refined_loss_can_be_a_cross_entropy():
    ce = HeadLosses(refined="ce", ohem_min_kept=1, ohem_thresh=0.1)(OUTPUT, TARGETS)
    everything = HeadLosses(ohem_min_kept=TARGETS.numel())(OUTPUT, TARGETS)
    assert {k: v.item() for k, v in ce.items()} == pytest.approx(
        {k: v.item() for k, v in everything.items()}
    )
    fewer = HeadLosses(ohem_min_kept=1, ohem_thresh=0.1)(OUTPUT, TARGETS)
    assert fewer["loss_refined"] > ce["loss_refined"]


def test_the_baseline_loss_does_not_affect_a_network_that_refines():
    ce, ohem = (HeadLosses(baseline=name, ohem_min_kept=1) for name in ("ce", "ohem"))
    assert ce(OUTPUT, TARGETS) == ohem(OUTPUT, TARGETS)


def test_unknown_baseline_loss():
    with pytest.raises(ValueError, match=r"baseline.*ce.*ohem.*focal"):
        HeadLosses(baseline="focal")


def test_unknown_refined_loss():
    with pytest.raises(ValueError, match=r"refined.*ohem.*ce.*focal"):
        HeadLosses(refined="focal")


@pytest.mark.parametrize(
    ("align_corners", "weight"),
    [
        # Columns 0 and a stretched to 4 columns; the second column holds weight * a.
        (True, 1 / 3),  # 1 * (2 - 1) / (4 - 1)
        (False, 1 / 4),  # (1 + 0.5) * 2 / 4 - 0.5
    ],
)
def test_logits_are_resized_to_the_target(align_corners, weight):
    a = 3.0
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = a
    losses = HeadLosses(align_corners=align_corners)
    targets = torch.tensor([[[255, 0, 255, 255]]])
    found = losses(HeadOutput(logits), targets)["loss_baseline"].item()
    assert found == pytest.approx(log(1 + torch.tensor(-weight * a).exp().item()), rel=1e-5)


# ---------------------------------------------------------------- waits for the device
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique2"}


class HostReads(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU, without one."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in READS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_the_counter_of_reads_counts():
    x = torch.ones(3)
    with HostReads() as reads:
        float(x.sum())
        x[x > 0]
        bool(x.any())
        x + x
    assert reads.found == ["_local_scalar_dense", "index", "_local_scalar_dense"]


@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_the_host_reads_once_for_all_terms(weights, monkeypatch):
    # tolist() of a CPU tensor reaches no operation, so it must not be called at all.
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    losses = HeadLosses(class_weights=weights, ohem_min_kept=1)
    logits = (OUTPUT.refined, OUTPUT.coarse, OUTPUT.aux)
    output = HeadOutput(*(x.clone().requires_grad_() for x in logits))
    with HostReads() as reads:
        sum(losses(output, TARGETS).values()).backward()
    assert reads.found == ["_local_scalar_dense"]


def test_a_wrong_label_is_refused_before_any_term():
    with pytest.raises(ValueError, match="target value 2 is neither a class in"):
        HeadLosses()(OUTPUT, torch.tensor([[[0, 2]]]))
