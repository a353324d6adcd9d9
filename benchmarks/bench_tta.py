#!/usr/bin/env python
"""Test-time augmentation beyond the network's forwards: time and memory beside the naive form.

    python benchmarks/bench_tta.py [--output benchmarks/results]

A 1024 x 2048 image, 19 classes, scales 0.75 to 2.0 with mirror images. The network is replaced by
stride-8 logits of a blob map made beforehand, so that what is left is the averaging. The naive
form resizes every view's logits to the view's size and then to the output, takes the softmax of
the whole and adds it up; the results are compared first.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from maps import blob_map, one_hot_logits
from protocol import (
    arguments,
    attempt,
    claim,
    exit_code,
    measure,
    mebibytes,
    one_thread,
    peak_memory,
    report,
)
from torch import Tensor

from cdgcnet.modeling.postprocessing import ResizeGeometry
from cdgcnet.modeling.probability_accumulator import AccumulatorOptions, ProbabilityAccumulator

CLASSES = 19
SIZE = (1024, 2048)
SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
ALIGN_CORNERS = True


def views(scales: tuple[float, ...], size: tuple[int, int]) -> list[tuple[Tensor, ResizeGeometry]]:
    """Stride-8 logits (M, h, w) of each view, and the way to the output."""
    g = torch.Generator().manual_seed(0)
    found = []
    for scale in scales:
        view = (round(size[0] * scale), round(size[1] * scale))
        nodes = (-(-view[0] // 8), -(-view[1] // 8))
        sharp = one_hot_logits(blob_map(128, CLASSES), CLASSES)
        logits = 4 * F.interpolate(sharp, size=nodes, mode="bilinear")[0]
        logits += torch.randn(logits.shape, generator=g) / 2
        found.append((logits, ResizeGeometry(view, view, size, ALIGN_CORNERS)))
    return found


def ours(
    scales: tuple[float, ...], labels: bool, size: tuple[int, int] = SIZE
) -> Callable[[], Tensor]:
    prepared = views(scales, size)

    def run() -> Tensor:
        total = ProbabilityAccumulator(CLASSES, size, torch.device("cpu"), AccumulatorOptions())
        for logits, geometry in prepared:
            for flip in (False, True):
                total.add(logits, geometry, flip=flip)
        return total.labels() if labels else total.mean(2 * len(prepared))

    return run


def naive(
    scales: tuple[float, ...], labels: bool, size: tuple[int, int] = SIZE
) -> Callable[[], Tensor]:
    prepared = views(scales, size)

    def run() -> Tensor:
        found = []
        for logits, geometry in prepared:
            for flip in (False, True):
                full = F.interpolate(
                    logits[None], size=geometry.padded, mode="bilinear", align_corners=ALIGN_CORNERS
                )
                full = F.interpolate(full, size=size, mode="bilinear", align_corners=False)
                p = full[0].softmax(dim=0)
                found.append(p.flip(-1) if flip else p)
        mean = torch.stack(found).mean(dim=0)
        return mean.argmax(dim=0) if labels else mean

    return run


FORMS = {"ours": ours, "naive": naive}


def check() -> int:
    """Pixels of the label map that differ between the two forms."""
    difference = (ours(SCALES, False)() - naive(SCALES, False)()).abs().max()
    if difference > 1e-5:
        sys.exit(f"bench_tta.py: error: the probabilities differ by {float(difference):.1e}")
    return int((ours(SCALES, True)() != naive(SCALES, True)()).sum())


def time_ratio(what: str, labels: bool, rounds: int) -> list[list[str]]:
    times = measure({name: form(SCALES, labels) for name, form in FORMS.items()}, rounds=rounds)
    return [claim(what, times.ratio("ours", "naive"), 0.15)]


def main() -> None:
    parser = arguments(__doc__)
    args = parser.parse_args()
    one_thread()
    wrong = check()
    rows: list[list[str]] = []
    for labels, name in ((False, "probabilities"), (True, "label map")):
        what = f"time, {name}, ours / naive"
        rows += attempt(what, partial(time_ratio, what, labels, args.rounds))
    for count in (1, 3, 6):
        # The largest scale last, so that all three have the largest view.
        scales = SCALES[-count:]
        for name, form in FORMS.items():
            peak = peak_memory(form, scales, False)
            rows.append([f"extra memory, {count} scales, {name}", mebibytes(peak), "", ""])
    rows.append(claim("pixels of the label map that differ, of 2.1 M", wrong, 0))
    report(
        "bench_tta",
        f"TTA beyond the forwards: {SIZE[0]} x {SIZE[1]}, M = {CLASSES}, {len(SCALES)} scales x 2",
        ["cell", "found", "target", ""],
        rows,
        args.output,
    )
    sys.exit(exit_code())


if __name__ == "__main__":
    main()
