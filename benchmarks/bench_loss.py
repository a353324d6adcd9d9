#!/usr/bin/env python
"""Resizing logits to the targets + loss, forward and backward, beside the plain formulation.

    python benchmarks/bench_loss.py [--device cuda] [--output benchmarks/results]

Plain: ``F.interpolate`` to the size of the targets, then ``F.cross_entropy`` (OHEM: losses per
pixel, the threshold form that CCNet and openseg use, mean over the kept). Values and gradients
are compared first.
"""

import math
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from protocol import (
    Unsteady,
    arguments,
    kernels,
    measure,
    mebibytes,
    no_tf32,
    one_thread,
    peak_device_memory,
    peak_memory,
    report,
    shrunk,
)
from torch import Tensor

from cdgc import cross_entropy, ohem_cross_entropy

CASES = ((97, 769, 19, True), (65, 520, 171, False))
THRESH, MIN_KEPT = 0.7, 100_000


def plain_cross_entropy(logits: Tensor, targets: Tensor, align_corners: bool) -> Tensor:
    size = tuple(targets.shape[1:])
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(full, targets, ignore_index=255)


def plain_ohem(logits: Tensor, targets: Tensor, align_corners: bool) -> Tensor:
    size = tuple(targets.shape[1:])
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)
    losses = F.cross_entropy(full, targets, ignore_index=255, reduction="none").flatten()
    losses = losses[targets.flatten() != 255]
    with torch.no_grad():
        ranked = losses.sort(descending=True).values
        limit = min(-math.log(THRESH), float(ranked[min(MIN_KEPT, len(ranked)) - 1]))
    return losses[losses >= limit].mean()


def our_ohem(logits: Tensor, targets: Tensor, align_corners: bool) -> Tensor:
    return ohem_cross_entropy(
        logits, targets, thresh=THRESH, min_kept=MIN_KEPT, align_corners=align_corners
    )


def our_cross_entropy(logits: Tensor, targets: Tensor, align_corners: bool) -> Tensor:
    return cross_entropy(logits, targets, align_corners=align_corners)


LOSSES = {"CE": (plain_cross_entropy, our_cross_entropy), "OHEM": (plain_ohem, our_ohem)}


def step(
    loss: Callable, case: tuple[int, int, int, bool], device: str
) -> Callable[[], tuple[Tensor, Tensor]]:
    """A forward and backward pass on logits that are right at two pixels of three."""
    low, high, classes, align_corners = case
    g = torch.Generator().manual_seed(0)
    blocks = torch.randint(classes, (1, 1, high // 16 + 1, high // 16 + 1), generator=g)
    targets = F.interpolate(blocks.float(), size=(high, high))[:, 0].long()
    near = F.interpolate(blocks.float(), size=(low, low))[:, 0].long()
    wrong = torch.rand(near.shape, generator=g) < 1 / 3
    near[wrong] = torch.randint(classes, (int(wrong.sum()),), generator=g)
    logits = torch.randn(1, classes, low, low, generator=g)
    logits += 8 * F.one_hot(near, classes).movedim(-1, 1)
    targets[:, : high // 20] = 255
    logits, targets = logits.to(device), targets.to(device)

    def run() -> tuple[Tensor, Tensor]:
        x = logits.clone().requires_grad_()
        value = loss(x, targets, align_corners)
        value.backward()
        assert x.grad is not None
        return value.detach(), x.grad

    return run


def prepare(name: str, which: int, case: tuple[int, int, int, bool], device: str) -> Callable:
    return step(LOSSES[name][which], case, device)


def peak(name: str, which: int, case: tuple[int, int, int, bool], device: str) -> int:
    if device == "cuda":
        return peak_device_memory(prepare(name, which, case, device))
    return peak_memory(prepare, name, which, case, device)


def on_device(plain: Callable, ours: Callable, device: str) -> list[str]:
    """On a GPU the time of the kernels alone, ours over the plain one's, and the launches."""
    if device != "cuda":
        return []
    theirs, own = kernels(plain), kernels(ours)
    ratio = f"{own.milliseconds / theirs.milliseconds:.2f}"
    return [ratio, f"{own.launches} / {theirs.launches}"]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_loss.py: error: --device cuda: this machine has no CUDA device")
    one_thread()
    no_tf32()
    rows = []
    for case in CASES:
        case = (shrunk(case[0]), shrunk(case[1]), *case[2:])
        low, high, classes, _ = case
        for name in LOSSES:
            plain, ours = (prepare(name, which, case, args.device) for which in (0, 1))
            (a, grad_a), (b, grad_b) = plain(), ours()
            error = float((grad_a - grad_b).norm() / grad_a.norm())
            if error > 1e-5 or abs(a - b) > 1e-5 * abs(a):
                sys.exit(f"bench_loss.py: error: {name} {case}: gradients differ by {error:.1e}")
            try:
                runs = {"plain": plain, "ours": ours}
                times = measure(runs, rounds=args.rounds, device=args.device)
                ratio = f"{times.ratio('ours', 'plain'):.2f}"
            except Unsteady as reason:
                ratio = f"unsteady ({reason})"
            memory = [peak(name, which, case, args.device) for which in (0, 1)]
            rows.append(
                [
                    f"{low} → {high}, M={classes}",
                    name,
                    ratio,
                    f"{mebibytes(memory[1])} / {mebibytes(memory[0])}",
                    f"{error:.0e}",
                    *on_device(plain, ours, args.device),
                ]
            )
    on_cuda = args.device == "cuda"
    report(
        "bench_loss_cuda" if on_cuda else "bench_loss",
        "Resize + loss, forward and backward, relative to F.interpolate + the plain loss",
        [
            "logits → targets",
            "loss",
            "time" if on_cuda else "CPU time",
            "extra memory, ours / plain",
            "gradient error",
            *(["kernels alone", "launches, ours / plain"] if on_cuda else []),
        ],
        rows,
        args.output,
    )


if __name__ == "__main__":
    main()
