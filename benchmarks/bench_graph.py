#!/usr/bin/env python
"""The class-wise graph beside other context modules: time and memory, forward and backward.

    python benchmarks/bench_graph.py [--output benchmarks/results] [--labels PNG ...]
    python benchmarks/bench_graph.py --full [--output benchmarks/results]
    python benchmarks/bench_graph.py --device cuda [--dtype bf16] [--compile]

The first form measures the cells that carry a target, the second all of N = 33², 65², 97²; M = 19,
21, 171; C = 128, 256, 512; forward, and forward + backward. An interrupted run resumes.

Features are random, class maps the blobs of ``maps.py`` (12 classes present), nodes coarse, B = 1
where a cell does not say otherwise. Real class maps are labels of CamVid and VOC below
DETECTRON2_DATASETS and those given with ``--labels``. Peers are mmsegmentation's where installed.
"""

import itertools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from maps import blob_map, label_maps, one_hot_logits, pair_share, smooth_logits
from peers import (
    DenseGraph,
    FusedAttention,
    LinearPart,
    NonLocal,
    ObjectContext,
    PositionAttention,
    mmseg_danet,
    mmseg_non_local,
    mmseg_ocr,
    mmseg_version,
)
from protocol import (
    Cells,
    Times,
    Unsteady,
    arguments,
    attempt,
    claim,
    exit_code,
    host_syncs,
    kernels,
    measure,
    mebibytes,
    no_tf32,
    one_thread,
    peak_device_memory,
    peak_memory,
    report,
    save,
    shrunk,
)
from torch import Tensor, nn

from cdgc import DEFAULT_GRAPH, CDGCModule
from cdgc.kernels import loop_only
from cdgcnet.engine.subnormals import flush_subnormals

GRAPHS = ("similarity graph", "uniform graph")
DEFAULT = "default graph"
# On CUDA, beside the kernels for all segments at once and beside fused attention.
LOOP = "similarity graph, segment loop"
STORED = "default graph, stored weights"
# Memory that the literal form holds at once, in copies of its M x N x N adjacency (measured).
DENSE_COPIES = 5
KERNEL_COLUMNS = [
    *(f"{name}: kernels alone" for name in (*GRAPHS, DEFAULT)),
    "kernels, ms",
    "launches",
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def graph(channels: int, num_classes: int, edges: str, kind: type = CDGCModule) -> CDGCModule:
    return kind(channels, num_classes, nodes="coarse", edges=edges)


def modules() -> dict[str, Callable[[int, int], nn.Module]]:
    """Contestants by name, built from C and M. Names say the widths."""
    found: dict[str, Callable[[int, int], nn.Module]] = {
        "similarity graph": lambda c, m: graph(c, m, "similarity"),
        "uniform graph": lambda c, m: graph(c, m, "uniform"),
        DEFAULT: lambda c, m: CDGCModule(c, m, **DEFAULT_GRAPH),
        LOOP: lambda c, m: graph(c, m, "similarity"),
        STORED: lambda c, m: CDGCModule(c, m, **DEFAULT_GRAPH),
        "similarity graph, all receivers": lambda c, m: CDGCModule(
            c, m, nodes="coarse", receivers="all"
        ),
        "linear part": lambda c, m: graph(c, m, "similarity", LinearPart),
        "non-local, keys C/2, fused": lambda c, _: NonLocal(c),
        "DANet position, keys C/8, fused": lambda c, _: PositionAttention(c),
        "one graph over all pixels, fused": lambda c, _: FusedAttention(c),
        "literal dense": lambda c, m: DenseGraph(graph(c, m, "similarity")),
    }
    if mmseg_version():
        return found | {
            "mmseg non-local, keys C/2": lambda c, _: mmseg_non_local(c),
            "mmseg DANet position, keys C/8": lambda c, _: mmseg_danet(c),
            "mmseg OCR, keys C/2": lambda c, _: mmseg_ocr(c),
        }
    return found | {
        "non-local, keys C/2, N×N": lambda c, _: NonLocal(c, fused=False),
        "DANet position, keys C/8, N×N": lambda c, _: PositionAttention(c, fused=False),
        "OCR, keys C/2": lambda c, _: ObjectContext(c),
    }


def peer_names() -> list[str]:
    left_out = (*GRAPHS, DEFAULT, LOOP, STORED, "linear part", "literal dense")
    return [name for name in modules() if name not in left_out]


@dataclass(frozen=True)
class Setting:
    """What all contestants of a run share."""

    device: str = "cpu"
    dtype: str = "fp32"  # below fp32: autocast
    compiled: bool = False


@dataclass(frozen=True)
class Cell:
    """A contestant and its input."""

    name: str
    side: int = shrunk(97)
    num_classes: int = 19
    channels: int = 256
    backward: bool = True
    batch: int = 1
    map_classes: int = 0  # classes that the map is drawn from; 0: num_classes
    one_class: bool = False
    magnitude: float = 1.0  # of the features

    def title(self) -> str:
        passes = "forward + backward" if self.backward else "forward"
        return f"N = {self.side}², M = {self.num_classes}, C = {self.channels}, {passes}"


def takes_logits(name: str) -> bool:
    return (
        "graph," in name
        or name in (*GRAPHS, DEFAULT, STORED, "linear part", "literal dense")
        or "OCR" in name
    )


def step(
    module: nn.Module, features: Tensor, extra: tuple[Tensor, ...], backward: bool, setting: Setting
) -> Callable[[], Tensor]:
    """A call of a module on fixed input, with gradients of input and parameters or without any."""
    module = module.to(setting.device).train(backward)
    features = features.to(setting.device)
    extra = tuple(e.to(setting.device) for e in extra)
    call = torch.compile(module) if setting.compiled else module
    cast = partial(
        torch.autocast, setting.device, DTYPES[setting.dtype], enabled=setting.dtype != "fp32"
    )

    def forward() -> Tensor:
        with torch.no_grad(), cast():
            return call(features, *extra)

    def both() -> Tensor:
        x = features.clone().requires_grad_()
        module.zero_grad(set_to_none=True)
        with cast():
            out = call(x, *extra)
        out.sum().backward()
        return out.detach()

    return both if backward else forward


def prepare(cell: Cell, setting: Setting) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    module = modules()[cell.name](cell.channels, cell.num_classes)
    drawn_from = cell.map_classes or cell.num_classes
    maps = [blob_map(cell.side, drawn_from, seed=s) for s in range(cell.batch)]
    if cell.one_class:
        maps = [torch.zeros_like(m) for m in maps]
    logits = torch.cat([one_hot_logits(m, cell.num_classes) for m in maps])
    g = torch.Generator().manual_seed(0)
    features = torch.randn(cell.batch, cell.channels, cell.side, cell.side, generator=g).relu()
    features *= cell.magnitude
    extra = (logits,) if takes_logits(cell.name) else ()
    call = step(module, features, extra, cell.backward, setting)
    return loop_only()(call) if cell.name in (LOOP, STORED) else call


def prepare_whole_image(setting: Setting) -> Callable[[], Tensor]:
    """The forward pass on the features of a 1024 x 2048 image, N = 128 * 256."""
    torch.manual_seed(0)
    height, width = shrunk(128), shrunk(256)
    logits = one_hot_logits(blob_map(width, 19)[:height], 19)
    features = torch.randn(1, 256, height, width).relu()
    return step(graph(256, 19, "similarity"), features, (logits,), False, setting)


def peak(prepare_it: Callable[..., Callable[[], Tensor]], *args: object) -> int:
    """Extra bytes of one call; the last argument is the setting."""
    setting = args[-1]
    assert isinstance(setting, Setting)
    if setting.device == "cuda":
        return peak_device_memory(prepare_it(*args))
    return peak_memory(prepare_it, *args)


def available_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def dense_fits(cell: Cell, device: str) -> bool:
    need = DENSE_COPIES * 4 * cell.batch * cell.num_classes * cell.side**4
    return need <= available_memory(device)


def agree(ours: Tensor, theirs: Tensor, what: str, limit: float = 1e-4) -> None:
    """Raise an error if two results that should be one differ."""
    error = float((ours - theirs).norm() / theirs.norm())
    if not error <= limit:
        raise ArithmeticError(f"{what}: the outputs differ by {error:.1e}")


# ---------------------------------------------------------------- the cells with a target
def against_peers(rounds: int, setting: Setting) -> tuple[list[list[str]], list[list[str]]]:
    """Each graph relative to each peer at N = 97², and the claims on them."""
    forms = (LOOP, STORED) if setting.device == "cuda" else ()
    names = [*GRAPHS, DEFAULT, *forms, *peer_names()]
    cells = {name: Cell(name) for name in names}
    runs = {name: prepare(cell, setting) for name, cell in cells.items()}
    times = measure(runs, rounds=rounds, device=setting.device)
    launched = {n: kernels(run) for n, run in runs.items()} if setting.device == "cuda" else {}
    del runs  # before memory is measured
    memory = {name: peak(prepare, cell, setting) for name, cell in cells.items()}
    similarity, uniform = GRAPHS
    rows = []
    for name in names:
        row = [f"{times.ratio(form, name):.3f}" for form in (*GRAPHS, DEFAULT)]
        row.append(mebibytes(memory[name]))
        row += [f"{memory[form] / memory[name]:.3f}" for form in (similarity, DEFAULT)]
        if launched:
            own = launched[name]
            row += [
                f"{launched[form].milliseconds / own.milliseconds:.3f}"
                for form in (*GRAPHS, DEFAULT)
            ]
            row += [f"{own.milliseconds:.2f}", str(own.launches)]
        rows.append([name, *row])
    claims = []
    for name in names:
        if "OCR" in name:
            claims.append(claim(f"uniform graph / {name}: time", times.ratio(uniform, name), 0.15))
        elif "non-local" in name or "DANet" in name:
            if "fused" in name:  # the targets are about the usual form; the table has both
                continue
            share = memory[similarity] / memory[name]
            what = f"similarity graph / {name}"
            claims.append(claim(f"{what}: time", times.ratio(similarity, name), 0.28))
            claims.append(claim(f"{what}: memory", share, 0.18))
    return rows, claims


def against_dense(setting: Setting) -> list[list[str]]:
    """The literal M x N x N form relative to ours."""
    rows = []
    for side, num_classes, limit in ((shrunk(33), 171, 150), (shrunk(65), 19, 80)):
        cells = {n: Cell(n, side, num_classes) for n in (GRAPHS[0], "literal dense")}
        what = f"literal dense / similarity graph: time, N = {side}², M = {num_classes}"
        if not dense_fits(cells["literal dense"], setting.device):
            rows.append([what, "does not fit", f"≥ {limit}", "not measured"])
            continue
        runs = {n: prepare(cell, setting) for n, cell in cells.items()}
        ours, printed = (run() for run in runs.values())
        agree(ours, printed, what, 1e-4 if setting.dtype == "fp32" else 5e-2)
        try:  # once: the literal form takes a hundred times as long as anything else here
            times = measure(runs, rounds=2, device=setting.device, warm=True, attempts=1)
        except Unsteady as reason:
            rows.append([what, f"not reported: {reason}", f"≥ {limit}", "not measured"])
            continue
        rows.append(claim(what, times.ratio("literal dense", GRAPHS[0]), limit, at_least=True))
    return rows


def cost_of_classes(rounds: int, setting: Setting) -> list[list[str]]:
    """171 classes beside 21 on the same node sets, N = 65², batch 4."""
    rows = []
    base = Cell(GRAPHS[0], shrunk(65), 21, batch=4, map_classes=19)
    for backward, limit in ((False, 1.05), (True, 1.3)):
        few = replace(base, backward=backward)
        many = replace(few, num_classes=171)
        runs = {"21": prepare(few, setting), "171": prepare(many, setting)}
        times = measure(runs, rounds=rounds, device=setting.device)
        passes = "forward + backward" if backward else "forward"
        what = f"M = 171 / M = 21: time, same nodes, N = 65², batch 4, {passes}"
        rows.append(claim(what, times.ratio("171", "21"), limit))
    return rows


def worst_case(rounds: int, setting: Setting) -> list[list[str]]:
    """One class everywhere beside one fused attention over all pixels."""
    cells = [Cell(GRAPHS[0], one_class=True), Cell("one graph over all pixels, fused")]
    runs = {cell.name: prepare(cell, setting) for cell in cells}
    times = measure(runs, rounds=rounds, device=setting.device)
    found = times.ratio(*(cell.name for cell in cells))
    return [claim("one class everywhere / one fused attention: time, N = 97²", found, 1.1)]


def subnormals(rounds: int, setting: Setting) -> list[list[str]]:
    """What it costs to compute with subnormal weights, which the project's commands take for 0."""
    rows = []
    for cell in (Cell(GRAPHS[0], shrunk(65), magnitude=8.0), Cell(DEFAULT, shrunk(65))):
        call = prepare(cell, setting)

        def kept(call: Callable[[], Tensor] = call) -> Tensor:
            torch.set_flush_denormal(False)
            try:
                return call()
            finally:
                flush_subnormals()

        times = measure({"kept": kept, "0": call}, rounds=rounds, device=setting.device)
        what = f"{cell.name}, features x {cell.magnitude:g}: time with subnormal numbers / without"
        rows.append([f"{what}, N = 65²", f"{times.ratio('kept', '0'):.2f}", "", ""])
    return rows


def memory_law(setting: Setting) -> list[list[str]]:
    """The exponent p of memory ~ N^p over N = 65² to 137²."""
    sides = tuple(shrunk(s) for s in (65, 97, 137))
    peaks = [peak(prepare, Cell(GRAPHS[0], side), setting) for side in sides]
    exponent = float(np.polyfit(np.log([s**2 for s in sides]), np.log(peaks), 1)[0])
    values = ", ".join(f"{side}²: {mebibytes(p)}" for side, p in zip(sides, peaks, strict=True))
    return [claim(f"exponent p of memory ~ N^p, forward + backward ({values})", exponent, 1.05)]


def whole_image(setting: Setting) -> list[list[str]]:
    extra = peak(prepare_whole_image, setting) / 2**20
    literal = 19 * 32768**2 * 4 / 2**30
    what = f"1024 × 2048 image (N = 32768), forward: extra MiB (literal A: {literal:.0f} GiB)"
    return [claim(what, extra, 130)]


# ---------------------------------------------------------------- beside one attention
def beside_attention(
    name: str, options: dict, x: Tensor, extra: tuple[Tensor, ...], setting: Setting
) -> tuple[dict[str, Callable[[], Tensor]], float]:
    """The steps of a graph and of its linear part, and its pairs over those of all pixels.

    The pairs are Σn², or N·Σn where every pixel receives. The linear part is the same module
    without attention; with all receivers it has N·C² for every class present, for U.

    Args:
        options: of the module.
        x: features, (1, C, h, w).
        extra: logits (1, M, h, w), and targets for dynamic nodes.
    """
    runs = {}
    for kind in (CDGCModule, LinearPart):
        torch.manual_seed(0)
        module = kind(x.shape[1], extra[0].shape[1], **options)
        runs[f"{name} {kind.__name__}"] = step(module, x, extra, True, setting)
    counts = module.select(*(e.to(setting.device) for e in extra)).counts.double()
    nodes = x[0, 0].numel()
    all_pixels = options.get("receivers") == "all"
    pairs = nodes * counts.sum() if all_pixels else (counts**2).sum()
    return runs, float(pairs) / nodes**2


def to_bound(times: Times, name: str, share: float) -> float:
    """Time of a graph over that of its pairs in the attention and its linear part: the median."""
    ours, linear, whole = (
        times.seconds[k] for k in (f"{name} CDGCModule", f"{name} LinearPart", "attention")
    )
    ratios = [t / (share * c + b) for t, b, c in zip(ours, linear, whole, strict=True)]
    return float(np.median(ratios))


def real_maps(files: list[Path], rounds: int, setting: Setting) -> list[list[str]]:
    """Graph time on labels of real images, beside what Σn²/N² of one attention predicts.

    Coarse nodes are the labels moved by one node to the right, so that boundaries are wrong;
    dynamic nodes are those of Eq. 4 with the labels as targets.
    """
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(label_maps(file)[0].numel(), []).append(file)
    rows = []
    for size, maps in by_size.items():  # those of one size share the attention
        runs: dict[str, Callable[[], Tensor]] = {"attention": one_attention(size, 256, setting)}
        found = []
        for file, nodes in itertools.product(maps, ("coarse", "dynamic")):
            coarse, targets = label_maps(file)
            classes = int(max(coarse.max(), targets[targets != 255].max())) + 1
            g = torch.Generator().manual_seed(0)
            x = torch.randn(1, 256, *coarse.shape, generator=g).relu()
            logits = one_hot_logits(coarse, classes)
            extra = (logits, targets[None]) if nodes == "dynamic" else (logits,)
            name = f"{file} {nodes}"
            steps, share = beside_attention(name, {"nodes": nodes}, x, extra, setting)
            runs |= steps
            height, width = coarse.shape
            found.append(([file.stem, f"{height}×{width}", nodes, f"{share:.3f}"], name, share))
        times = measure(runs, rounds=rounds, device=setting.device)
        for row, name, share in found:
            kinds = ("CDGCModule", "LinearPart")
            row += [f"{times.ratio(f'{name} {kind}', 'attention'):.3f}" for kind in kinds]
            bound = to_bound(times, name, 1.15 * share)
            rows.append([*row, f"{bound:.2f}", "met" if bound <= 1 else "**missed**"])
    return rows


# Name, options, M.
BOUNDED: tuple[tuple[str, dict[str, str], int], ...] = (
    ("all receivers, coarse nodes", {"nodes": "coarse", "receivers": "all"}, 19),
    ("all receivers, coarse nodes", {"nodes": "coarse", "receivers": "all"}, 171),
    ("dynamic nodes", {"nodes": "dynamic"}, 19),
    ("soft nodes", {"nodes": "soft"}, 19),
)


def against_bound(rounds: int, setting: Setting) -> list[list[str]]:
    """Graphs relative to what their pairs cost in one fused attention, plus their linear part."""
    side, channels = shrunk(97), 256
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=g).relu()
    runs: dict[str, Callable[[], Tensor]] = {"attention": one_attention(side**2, channels, setting)}
    shares = {}
    for kind, options, num_classes in BOUNDED:
        class_map = blob_map(side, num_classes)
        extra: tuple[Tensor, ...] = (smooth_logits(class_map, num_classes),)
        if options["nodes"] == "dynamic":
            extra = (one_hot_logits(class_map.roll(1, 1), num_classes), class_map[None])
        name = f"{kind}, M = {num_classes}"
        steps, shares[name] = beside_attention(name, options, x, extra, setting)
        runs |= steps
    times = measure(runs, rounds=rounds, device=setting.device)
    what = "time / (its pairs in one attention + linear part)"
    return [
        claim(f"{name}: {what}", to_bound(times, name, share), 1.15)
        for name, share in shares.items()
    ]


def one_attention(nodes: int, channels: int, setting: Setting) -> Callable[[], Tensor]:
    """One fused attention over all nodes, nothing else."""
    g = torch.Generator().manual_seed(0)
    dtype = DTYPES[setting.dtype]
    rows = [torch.randn(1, 1, nodes, channels, generator=g) * channels**-0.25 for _ in range(3)]
    leaves = [r.to(setting.device, dtype).requires_grad_() for r in rows]

    def run() -> Tensor:
        out = F.scaled_dot_product_attention(*leaves, scale=1.0)
        torch.autograd.grad(out.sum(), leaves)
        return out.detach()

    return run


def rates(rounds: int, setting: Setting) -> list[list[str]]:
    """Multiply-adds per second of the graph and of its two parts beside one large matrix product.

    The parts alone bound what the graph can reach: the softmax of an attention is no matrix
    product, and a segment is smaller than the product.
    """
    cell, size = Cell(GRAPHS[0]), 1024 if setting.device == "cpu" else 8192
    counts = [n for n in torch.bincount(blob_map(cell.side, cell.num_classes).flatten()) if n]
    nodes, c = cell.side**2, cell.channels
    # Forward: 2·C per pair, 3 products of C×C per node and φ φ'ᵀ. Backward: twice the products, and
    # the attention's two gradients of q kᵀ, one recomputation and two of A X, 5 for 2.
    products, attention = 9 * nodes * c**2 + 3 * c**3, 7 * c * int(sum(n**2 for n in counts))
    a = torch.randn(size, size, device=setting.device, dtype=DTYPES[setting.dtype])
    segments = [one_attention(int(n), c, setting) for n in counts]
    largest = one_attention(int(max(counts)), c, setting)
    runs: dict[str, Callable[[], object]] = {
        "graph": prepare(cell, setting),
        "attention": lambda: [run() for run in segments],
        "largest": largest,
        "products": three_products([int(n) for n in counts], c, setting),
        "one": lambda: a @ a,
    }
    times = measure(runs, rounds=rounds, device=setting.device)

    def rate(name: str, adds: int) -> float:
        return adds / size**3 / times.ratio(name, "one")

    parts = {
        "fused attention alone, all segments": ("attention", attention),
        "fused attention alone, the largest segment": ("largest", 7 * c * int(max(counts)) ** 2),
        "products with φ φ'ᵀ, W and U alone": ("products", products - 3 * c**3),
    }
    shares = [times.ratio(name, "graph") for name in ("attention", "products")]
    one = "rate of one large matrix product"
    rows = [claim(f"rate of the similarity graph / {one}", rate("graph", products + attention),
                  0.85, at_least=True)]  # fmt: skip
    rows += [[f"rate of {w}, / {one}", f"{rate(*part):.2f}", "", ""] for w, part in parts.items()]
    floor = rate("graph", products + attention) / sum(shares)
    rows.append([f"rate of both parts alone, without the rest of the graph, / {one}",
                 f"{floor:.2f}", "", ""])  # fmt: skip
    what = "share of the similarity graph's time: attention, products, rest"
    rows.append([what, " + ".join(f"{s:.2f}" for s in (*shares, 1 - sum(shares))), "", ""])
    return rows


def three_products(counts: list[int], channels: int, setting: Setting) -> Callable[[], None]:
    """The products of all nodes with φ φ'ᵀ and of each class's with W and U, nothing else."""

    def draw(*shape: int) -> Tensor:
        dtype = DTYPES[setting.dtype]
        return torch.randn(*shape, device=setting.device, dtype=dtype).requires_grad_()

    sizes = [sum(counts), *counts, *counts]
    pairs = [(draw(n, channels), draw(channels, channels)) for n in sizes]
    grads = [torch.ones_like(rows) for rows, _ in pairs]

    def run() -> None:
        for leaves, grad in zip(pairs, grads, strict=True):
            torch.autograd.grad(leaves[0] @ leaves[1], leaves, grad)

    return run


def syncs(setting: Setting) -> list[list[str]]:
    """How often one pass makes the host wait for the device."""
    if setting.device != "cuda":
        return [["host synchronisations of a pass", "no GPU", "", ""]]
    rows = []
    for name in GRAPHS:
        for backward, passes in ((False, "forward"), (True, "forward + backward")):
            run = prepare(Cell(name, shrunk(65), backward=backward), setting)
            rows.append([f"host synchronisations, {name}, {passes}", str(host_syncs(run)), "", ""])
    return rows


# ---------------------------------------------------------------- the grid
def grid_cell(shape: Cell, rounds: int, setting: Setting) -> list[list[str]]:
    """All contestants at one N, M, C and pass: time relative to the similarity graph, memory."""
    left_out = ("linear part", *(() if setting.device == "cuda" else (LOOP, STORED)))
    cells = {n: replace(shape, name=n) for n in modules() if n not in left_out}
    fits = dense_fits(cells["literal dense"], setting.device)
    runs = {n: prepare(c, setting) for n, c in cells.items() if fits or n != "literal dense"}
    try:
        times = measure(runs, rounds=rounds, device=setting.device)
    except Unsteady as reason:
        return [["", str(reason), ""]]
    rows = []
    for name, cell in cells.items():
        if name in runs:
            ratio = f"{times.ratio(name, GRAPHS[0]):.3g}"
            rows.append([name, ratio, mebibytes(peak(prepare, cell, setting))])
        else:
            rows.append([name, "does not fit", "does not fit"])
    return rows


def full_grid(rounds: int, setting: Setting, output: Path | None, suffix: str) -> None:
    path = (output or Path("benchmarks/results")) / "cells" / f"bench_graph{suffix}.json"
    kept, rows = Cells(path), []
    shapes = itertools.product((False, True), (128, 256, 512), (33, 65, 97), (19, 21, 171))
    for backward, channels, side, num_classes in shapes:
        shape = Cell("", side, num_classes, channels, backward)
        found = kept.get(shape.title(), partial(grid_cell, shape, rounds, setting))
        rows += [[shape.title(), *row] for row in found]
        # After each cell: an interrupted run leaves the table of what it has.
        report(
            f"bench_graph_full{suffix}",
            "The grid: time relative to the similarity graph, and extra memory (cells measured at "
            f"{kept.commits()})",
            ["cell", "module", "time / similarity graph", "extra memory"],
            rows,
            output,
        )


# ---------------------------------------------------------------- command line
def label_files(given: list[Path]) -> list[Path]:
    """Two label maps each of CamVid and VOC below DETECTRON2_DATASETS, and the ``given`` ones."""
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    found: list[Path] = []
    for folder in ("camvid/labels/val", "VOCdevkit/VOC2012/SegmentationClassAug"):
        files = sorted((root / folder).glob("*.png"))
        found += files[:: max(1, math.ceil(len(files) / 2))]
    return [*found, *given]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="the whole grid, resumable")
    parser.add_argument(
        "--labels", type=Path, nargs="*", default=[], help="label PNGs, 255 ignored"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="fp32", help="autocast below fp32"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile all contestants")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_graph.py: error: --device cuda: this machine has no CUDA device")
    one_thread()
    no_tf32()
    setting = Setting(args.device, args.dtype, args.compile)
    suffix = "" if setting == Setting() else "_".join(
        ["", args.device, args.dtype, *(["compiled"] if args.compile else [])]
    )  # fmt: skip
    if args.full:
        full_grid(args.rounds, setting, args.output, suffix)
        return
    beside = mmseg_version() or "mmsegmentation not installed: minimal modules alone"
    share = pair_share(blob_map(97, 19))
    claims: list[list[str]] = []

    def peers() -> list[list[str]]:
        rows, found = against_peers(args.rounds, setting)
        claims.extend(found)
        return rows

    rows = attempt("peers", peers)
    report(
        f"bench_graph_peers{suffix}",
        f"Graph relative to context modules, {Cell('').title()}, Σn²/N² = {share:.2f} ({beside})",
        ["module", "similarity graph: time", "uniform graph: time", "default graph: time",
         "extra memory of the module", "similarity graph: memory", "default graph: memory",
         *(KERNEL_COLUMNS if args.device == "cuda" else [])],
        rows,
        args.output,
    )  # fmt: skip
    parts = {
        "literal dense": partial(against_dense, setting),
        "cost of classes": partial(cost_of_classes, args.rounds, setting),
        "worst case": partial(worst_case, args.rounds, setting),
        "memory law": partial(memory_law, setting),
        "whole image": partial(whole_image, setting),
        "bound": partial(against_bound, args.rounds, setting),
        "rate": partial(rates, args.rounds, setting),
        **(
            {"subnormal numbers": partial(subnormals, args.rounds, setting)}
            if args.device == "cpu"
            else {}
        ),
        "host synchronisations": partial(syncs, setting),
    }
    text = ""
    for what, part in parts.items():
        claims += attempt(what, part)
        text = save(  # after each part, for runs that are cut off
            f"bench_graph{suffix}",
            f"Claims on the graph, C = 256, forward + backward where not said otherwise ({beside})",
            ["cell", "found", "target", ""],
            claims,
            args.output,
        )
    print(text)
    files = label_files(args.labels)
    rows = [["no label maps found", *[""] * 7]]
    if files:
        rows = attempt("real maps", lambda: real_maps(files, args.rounds, setting))
    report(
        f"bench_graph_real{suffix}",
        "Similarity graph on labels of real images, C = 256, forward + backward, relative to one "
        "fused attention over all N; bound: 1.15·(Σn²/N²)·attention + linear part",
        ["labels", "nodes h×w", "S_m", "Σn²/N²", "graph", "linear part", "graph / bound", "≤ 1"],
        rows,
        args.output,
    )
    sys.exit(exit_code())


if __name__ == "__main__":
    main()
