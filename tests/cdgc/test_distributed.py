"""Two processes whose batches hold different classes train as one process with both batches."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from cdgc import CDGCModule

M, C = 4, 6


# (edges, receivers, softmax)
CASES = [
    ("similarity", "nodes", "class"),
    ("uniform", "nodes", "class"),
    ("topk", "nodes", "class"),
    ("similarity", "all", "class"),
    ("uniform", "all", "class"),
    ("similarity", "all", "image"),
]


def _module(edges, receivers, softmax):
    torch.manual_seed(0)
    options = {"heads": 2, "distance_bias": True} if softmax == "image" else {"topk": 2}
    options |= {"edges": edges, "receivers": receivers, "softmax": softmax}
    return CDGCModule(C, M, norm=None, relu=False, **options).double()


def _batch(rank):
    """Process 0 sees classes 0 and 1 only; process 1 has nothing but ignored pixels."""
    g = torch.Generator().manual_seed(rank)
    x = torch.randn(1, C, 5, 5, generator=g, dtype=torch.float64)
    logits = torch.randn(1, M, 5, 5, generator=g, dtype=torch.float64)
    logits[:, 2:] -= 100
    targets = torch.randint(0, 2, (1, 33, 33), generator=g)
    return x, logits, targets if rank == 0 else torch.full_like(targets, 255)


def _train(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for case in CASES:
        # Without find_unused_parameters, a parameter without a gradient raises at the second step.
        model = DistributedDataParallel(_module(*case))
        for _ in range(2):
            model.zero_grad()
            model(*_batch(rank)).square().sum().backward()
        grads = {k: p.grad for k, p in model.module.named_parameters()}
        torch.save(grads, Path(folder, f"{'-'.join(case)}-{rank}.pth"))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """The folder in which two processes have left the gradients of every case."""
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Fresh interpreters: a fork would inherit the thread pool of a torch that has already run.
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(folder)])
        for rank in (0, 1)
    ]
    try:
        assert [worker.wait(120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.mark.parametrize("case", CASES)
def test_absent_classes_do_not_stop_distributed_training(case, gradients):
    # Distributed training averages the gradients of the two processes.
    alone = [_module(*case) for _ in range(2)]
    for rank, module in enumerate(alone):
        module(*_batch(rank)).square().sum().backward()
    both = [torch.load(gradients / f"{'-'.join(case)}-{rank}.pth") for rank in (0, 1)]
    for name, p in alone[0].named_parameters():
        expected = (p.grad + dict(alone[1].named_parameters())[name].grad) / 2
        assert torch.equal(both[0][name], both[1][name])
        torch.testing.assert_close(both[0][name], expected, rtol=0, atol=1e-12)
    assert not both[0]["graph_weight"][2:].any()  # classes that neither process saw


if __name__ == "__main__":
    _train(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
