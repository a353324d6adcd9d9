"""Crops that stay aligned with their labels, and heads that learn from them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from cdgcnet.comparison.options import Schedule
from cdgcnet.comparison.rows import make_rows
from cdgcnet.comparison.training import CropSampler, PeakMemory, evaluate, train

CLASSES = 5


def coordinates(h, w):
    """Features are node positions; the kept label (y, x) is y + 2x, mod 251."""
    features = np.stack(np.indices((h, w)), axis=2)
    y, x = np.indices((4 * (h - 1) + 1, 4 * (w - 1) + 1))
    return features, (y + 2 * x) % 251


def test_crops_are_aligned_and_flipped(make_store):
    store = make_store([coordinates(9, 12), coordinates(12, 7)])
    sampler = CropSampler(store, crop=5, batch=4, seed=0)
    flipped = 0
    for _ in range(20):
        x, y = sampler.draw()
        assert x.shape == (4, 2, 5, 5) and y.shape == (4, 9, 9)  # two labels per node
        assert x.is_contiguous(memory_format=torch.channels_last)
        for features, labels in zip(x, y, strict=True):
            # At every node the label must be that of the node's own position, 4 pixels a node.
            at_nodes = labels[::2, ::2]
            expected = (4 * features[0] + 2 * 4 * features[1]).long() % 251
            assert torch.equal(at_nodes, expected)
            flipped += int(features[1, 0, 0] > features[1, 0, -1])
    assert 20 < flipped < 60  # half of 80


def test_crops_reach_every_corner_and_repeat_with_their_seed(make_store):
    store = make_store([coordinates(6, 6)])
    corners = set()
    sampler = CropSampler(store, crop=5, batch=8, seed=1)
    for _ in range(5):
        x, _ = sampler.draw()
        corners |= {(int(f[0].min()), int(f[1].min())) for f in x}
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}
    again, other = (CropSampler(store, 5, 8, seed).draw()[0] for seed in (1, 2))
    assert torch.equal(CropSampler(store, 5, 8, 1).draw()[0], again)
    assert not torch.equal(again, other)


def test_too_large_a_crop_is_named(make_store):
    store = make_store([coordinates(9, 12)])
    with pytest.raises(ValueError, match="--crop 10: the smallest image has 9 nodes"):
        CropSampler(store, crop=10, batch=1, seed=0)


@pytest.fixture
def colored_set():
    """A registered set of five classes, for their names."""
    name = "comparison_test"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(stuff_classes=[f"class {i}" for i in range(CLASSES)])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def blocks(make_store):
    """Images of 8 x 8 nodes whose left and right half each have one class and its feature."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(12):
        left, right = rng.choice(CLASSES, 2, replace=False)
        classes = np.where(np.arange(8)[None] < 4, left, right).repeat(8, axis=0)
        labels = np.where(np.arange(29)[None] < 14, left, right).repeat(29, axis=0)
        features = np.eye(CLASSES)[classes] + 0.1 * rng.standard_normal((8, 8, CLASSES))
        images.append((features, labels))
    return make_store(images)


SCHEDULE = Schedule(steps=60, batch=4, crop=6, width=16, learning_rate=0.01)


@pytest.mark.parametrize("head", ["plain", "graph", "ocr"])
def test_heads_learn_what_the_features_contain(tiny_cfg, blocks, colored_set, head):
    [row] = make_rows(tiny_cfg(), [head], ["none"], SCHEDULE)
    steps = []
    trained, cost = train(row, blocks, SCHEDULE, 1, steps.append)
    metrics = evaluate(row, trained, blocks, colored_set, "fp32")
    # All but the pixels between the halves: a column of 29 and its neighbors may go either way.
    assert metrics["sem_seg"]["mIoU"] > 80
    assert ("sem_seg_coarse" in metrics) == (head != "plain")
    assert sum(steps) == 60
    assert cost["parameters"] == sum(p.numel() for p in trained.parameters())
    expected = {"loss_baseline"} if head == "plain" else {"loss_coarse", "loss_refined"}
    assert set(cost["losses"]) == expected


def test_a_seed_decides_all(tiny_cfg, blocks):
    [row] = make_rows(tiny_cfg(), ["graph"], ["none"], SCHEDULE)
    short = Schedule(**{**vars(SCHEDULE), "steps": 3})
    first, again, other = (train(row, blocks, short, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_a_loss_that_is_not_finite_ends_the_row(tiny_cfg, make_store):
    image = (np.full((8, 8, 3), 1e4), np.zeros((29, 29)))
    store = make_store([image])
    schedule = Schedule(**{**vars(SCHEDULE), "learning_rate": 1e38, "steps": 10})
    [row] = make_rows(tiny_cfg(), ["plain"], ["none"], schedule)
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step \d"):
        train(row, store, schedule, 1)


@given(st.integers(20, 60))
def test_peak_memory_sees_an_allocation(megabytes):
    memory = PeakMemory(torch.device("cpu"))
    before = memory.bytes()
    block = torch.ones(megabytes << 18)
    assert memory.bytes() >= before
    assert memory.bytes() + memory.before >= block.numel() * 4


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_peak_memory_leaves_out_that_of_the_parent_process():
    # On Linux, ru_maxrss of a new process starts with the parent's size.
    code = (
        "import torch\n"
        "from cdgcnet.comparison.training import PeakMemory\n"
        "print(PeakMemory(torch.device('cpu')).bytes())"
    )
    block = bytearray(b"x") * (600 << 20)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(block) and int(found.stdout) < 200 << 20
