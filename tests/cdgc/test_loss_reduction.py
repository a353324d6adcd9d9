"""REDUCE "global": two and three processes have the gradients of one with the whole batch."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cdgc import OhemCrossEntropyLoss, cross_entropy, ohem_cross_entropy
from cdgc.processes import largest_over_processes

CLASSES, IMAGES = 3, 6


def ce(logits, targets, reduce):
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    return cross_entropy(logits, targets, class_weights=weights, reduce=reduce)


def ohem(min_kept):
    def loss(logits, targets, reduce):
        return ohem_cross_entropy(logits, targets, thresh=0.3, min_kept=min_kept, reduce=reduce)

    return loss


LOSSES = {
    "ce": ce,
    "ohem, none": ohem(0),
    "ohem, 7 pixels": ohem(7),
    "ohem, a fraction": ohem(0.3),
    "ohem, all": ohem(1e6),
}


def network():
    torch.manual_seed(0)
    return torch.nn.Conv2d(2, CLASSES, 1).double()


def whole_batch():
    """Six images. Image 0 is mostly ignored, images 4 and 5 wholly; images 1 and 2 are equal."""
    g = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 2, 5, 5, generator=g, dtype=torch.float64)
    targets = torch.randint(CLASSES, (IMAGES, 9, 9), generator=g)
    targets[0, 1:] = 255
    targets[4:] = 255
    images[2], targets[2] = images[1], targets[1]  # every pixel ties with one of another image
    return images, targets


def train(rank, world, folder):
    """Save the gradients and the loss of every case; the last of three has no valid pixel."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous{world}", rank=rank, world_size=world
    )
    images, targets = (x.chunk(world)[rank] for x in whole_batch())
    found = {}
    for name, loss in LOSSES.items():
        for reduce in ("global", "process"):
            model = DistributedDataParallel(network())
            value = loss(model(images), targets, reduce)
            value.backward()
            found[name, reduce] = value.detach(), [p.grad for p in model.module.parameters()]
    # Unequal numbers of values: 1, 2, 3, ….
    values = [torch.tensor([5.0, 1.0, 3.0][: r + 1]) for r in range(world)]
    found["largest"] = [largest_over_processes(values[rank], k) for k in (0, 1, 2, 3, 0.5, 99)]
    torch.save(found, Path(folder, f"{world}-{rank}.pth"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def processes(request, tmp_path_factory):
    """What every process has found."""
    folder, world = tmp_path_factory.mktemp("reduction"), request.param
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(world), str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        assert [worker.wait(240) for worker in workers] == [0] * world
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(folder / f"{world}-{rank}.pth") for rank in range(world)]


@pytest.mark.parametrize("name", LOSSES)
def test_processes_have_the_gradients_of_one(processes, name):
    model = network()
    images, targets = whole_batch()
    expected = LOSSES[name](model(images), targets, "global")
    expected.backward()
    for found in processes:
        for gradient, parameter in zip(found[name, "global"][1], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-10)
    mean = sum(found[name, "global"][0] for found in processes) / len(processes)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-10)


def test_means_of_each_process_have_other_gradients(processes):
    # Image 0 has 9 valid pixels, its neighbors 81 each.
    exact, usual = (processes[0]["ce", reduce][1][0] for reduce in ("global", "process"))
    assert (exact - usual).abs().max() > 0.05 * exact.abs().max()


def test_the_largest_values_by_hand(processes):
    # Two processes hold 5 | 5 1, three hold 5 | 5 1 | 5 1 3. Lower ranks first where values tie.
    expected = {
        2: {0: "0|00", 1: "1|00", 2: "1|10", 3: "1|11", 0.5: "1|00", 99: "1|11"},
        3: {
            0: "0|00|000",
            1: "1|00|000",
            2: "1|10|000",
            3: "1|10|100",
            0.5: "1|10|100",
            99: "1|11|111",
        },
    }[len(processes)]
    for i, masks in enumerate(expected.values()):
        found = "|".join(
            "".join(str(int(x)) for x in process["largest"][i]) for process in processes
        )
        assert found == masks


# ---------------------------------------------------------------- one process


def test_alone_both_are_the_same_but_for_ties():
    images, targets = whole_batch()
    keep = [0, 1, 3]  # without the images that tie
    logits = network()(images[keep])
    for loss in LOSSES.values():
        usual, exact = (loss(logits, targets[keep], reduce) for reduce in ("process", "global"))
        assert exact.item() == pytest.approx(usual.item(), rel=1e-12)


def test_the_first_of_equal_values_are_taken():
    values = torch.tensor([[2.0, 7.0, 2.0], [7.0, 2.0, 9.0]])
    masks = [largest_over_processes(values, count) for count in range(7)]
    order = [int((b & ~a).flatten().nonzero()) for a, b in pairwise(masks)]
    assert order == [5, 1, 3, 0, 2, 4]


def test_an_unknown_reduction_is_refused():
    logits, targets = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)
    for call in (cross_entropy, ohem_cross_entropy):
        with pytest.raises(ValueError, match=r"reduce must be one of .*'mean'"):
            call(logits, targets, reduce="mean")
    with pytest.raises(ValueError, match="got 'mean'"):
        OhemCrossEntropyLoss(reduce="mean")
    module = OhemCrossEntropyLoss(min_kept=1, reduce="global")
    assert module(logits, targets).item() == pytest.approx(0.6931, abs=1e-4)


if __name__ == "__main__":
    train(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
