#!/usr/bin/env python
"""Whole networks side by side: ResNets at output stride 8, inference and training step.

    python benchmarks/bench_model.py [--output benchmarks/results]
    python benchmarks/bench_model.py --full [--output benchmarks/results]
    python benchmarks/bench_model.py --device cuda [--dtype bf16] [--compile]

The first form takes 256² crops: inference with a ResNet-101, a training step with a ResNet-50. The
second takes 512² and 769² with a ResNet-101 and resumes; with ``--device cuda`` these are 769²
with 19 classes, batch 2, and 520² with 171, batch 4. Weights and images are random; the graph's
coarse prediction is a blob map of ``maps.py``, without which a random network would give all nodes
to one class or two.

Inference goes from normalized image (ours: from pixel values) to logits of the image's size, batch
1. A training step is forward, all losses, backward and SGD, batch 2. Contestants:

- ours: ``CDGCSegmentor`` without graph (ASPP baseline), with uniform and with similarity edges and
  dynamic nodes in training, and with the default graph, after ASPP; OHEM, auxiliary head.
  "contiguous" is MODEL.CHANNELS_LAST False.
- the convolutions of our network with similarity edges alone, forward and backward, which bound
  what a training step can take.
- torchvision's DeepLabV3 with its auxiliary classifier, cross entropy on both.
- mmsegmentation's ASPPHead network (512 channels) as its DeepLabv3 R-101-D8 configs have it, where
  it is installed (``--compile`` reaches its inference only).
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from maps import blob_map, one_hot_logits
from peers import mmseg_build, mmseg_version
from protocol import (
    Cells,
    Unsteady,
    arguments,
    attempt,
    claim,
    exit_code,
    kernels,
    measure,
    mebibytes,
    no_tf32,
    one_thread,
    peak_device_memory,
    peak_memory,
    save,
    shrunk,
)
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from cdgcnet import add_cdgcnet_config

BASE, UNIFORM, SIMILARITY = "ours: ASPP", "ours: CDGC uniform", "ours: CDGC similarity"
DEFAULT = "ours: CDGC default graph"
CONVOLUTIONS = "convolutions of ours alone"
OURS = (BASE, UNIFORM, SIMILARITY, DEFAULT)
LAST, FIRST = "channels_last", "contiguous"
TORCHVISION, MMSEG = "torchvision deeplabv3", "mmseg ASPPHead"
NO_MMSEG = "mmsegmentation not installed"
AUX_WEIGHT = 0.4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Setting:
    """What all contestants of a run share."""

    size: int
    num_classes: int = 19
    train: bool = False
    batch: int = 1
    depth: int = 101
    device: str = "cpu"
    dtype: str = "fp32"  # below fp32: autocast
    compiled: bool = False


def contestants(setting: Setting) -> list[str]:
    names = [*OURS, f"{SIMILARITY}, {FIRST}", TORCHVISION, f"{TORCHVISION}, {LAST}"]
    if setting.depth == 50:
        names.append(CONVOLUTIONS)
    return [*names, MMSEG] if mmseg_version() else names


def maps(setting: Setting) -> tuple[Tensor, Tensor]:
    """Coarse logits (B, M, h, w) of blob maps, and labels (B, H, W): the map moved by a node."""
    side = -(-setting.size // 8)
    found = [blob_map(side, setting.num_classes, seed=s) for s in range(setting.batch)]
    coarse = torch.cat([one_hot_logits(m, setting.num_classes) for m in found])
    moved = torch.stack(found)[:, None].roll(1, dims=3).float()
    labels = F.interpolate(moved, size=(setting.size, setting.size), mode="nearest")[:, 0].long()
    labels[:, : setting.size // 20] = 255
    return coarse.to(setting.device), labels.to(setting.device)


def our_network(name: str, setting: Setting) -> nn.Module:
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    cfg.MODEL.DEVICE = setting.device
    cfg.MODEL.RESNETS.DEPTH = setting.depth
    cfg.MODEL.WEIGHTS = ""
    for node in (cfg.MODEL.RESNETS, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.CDGC):
        node.NORM = "BN"
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = setting.num_classes
    cfg.MODEL.CDGC.ENABLED = not name.startswith(BASE)
    if name != DEFAULT:  # as in the paper
        cfg.MODEL.CDGC.NODES, cfg.MODEL.CDGC.RECEIVERS = "dynamic", "nodes"
        cfg.MODEL.CDGC.SOFTMAX = "class"
    cfg.MODEL.CDGC.EDGES = "uniform" if name.startswith(UNIFORM) else "similarity"
    cfg.MODEL.CHANNELS_LAST = FIRST not in name
    network = build_model(cfg)
    blobs = 100 * maps(setting)[0]
    network.sem_seg_head.coarse_predictor.register_forward_hook(lambda _, __, out: out + blobs)
    return network


def our_step(name: str, setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    network = our_network(name, setting)
    _, labels = maps(setting)
    size = (setting.batch, 3, setting.size, setting.size)
    images = torch.randint(256, size, generator=torch.Generator().manual_seed(0)).float()
    inputs = [{"image": image.to(setting.device)} for image in images]
    if not setting.train:
        return network, lambda: network(inputs)[0]["sem_seg"]
    for x, label in zip(inputs, labels, strict=True):
        x["sem_seg"] = label
    return network, lambda: sum(network(inputs).values())


def torchvision_step(name: str, setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    build = {50: deeplabv3_resnet50, 101: deeplabv3_resnet101}[setting.depth]
    network = build(
        weights=None, weights_backbone=None, num_classes=setting.num_classes, aux_loss=True
    ).to(setting.device)
    _, labels = maps(setting)
    x = torch.randn(setting.batch, 3, setting.size, setting.size).to(setting.device)
    if LAST in name:
        network, x = network.to(memory_format=torch.channels_last), x.contiguous(
            memory_format=torch.channels_last
        )  # fmt: skip

    def losses() -> Tensor:
        out = network(x)
        main, aux = (F.cross_entropy(out[k], labels, ignore_index=255) for k in ("out", "aux"))
        return main + AUX_WEIGHT * aux

    return network, losses if setting.train else lambda: network(x)["out"]


def mmseg_config(num_classes: int, depth: int) -> dict:
    """configs/_base_/models/deeplabv3_r50-d8.py with BN for SyncBN."""
    norm = {"type": "BN", "requires_grad": True}
    head = {
        "dropout_ratio": 0.1,
        "num_classes": num_classes,
        "norm_cfg": norm,
        "align_corners": False,
    }
    loss = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    return {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "ResNetV1c",
            "depth": depth,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "dilations": (1, 1, 2, 4),
            "strides": (1, 2, 1, 1),
            "norm_cfg": norm,
            "norm_eval": False,
            "style": "pytorch",
            "contract_dilation": True,
        },
        "decode_head": {
            "type": "ASPPHead",
            "in_channels": 2048,
            "in_index": 3,
            "channels": 512,
            "dilations": (1, 12, 24, 36),
            "loss_decode": {**loss, "loss_weight": 1.0},
            **head,
        },
        "auxiliary_head": {
            "type": "FCNHead",
            "in_channels": 1024,
            "in_index": 2,
            "channels": 256,
            "num_convs": 1,
            "concat_input": False,
            "loss_decode": {**loss, "loss_weight": AUX_WEIGHT},
            **head,
        },
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }


def mmseg_step(setting: Setting) -> tuple[nn.Module, Callable[[], Tensor]]:
    network = mmseg_build(mmseg_config(setting.num_classes, setting.depth)).to(setting.device)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    _, labels = maps(setting)
    shape = (setting.size, setting.size)
    x = torch.randn(setting.batch, 3, *shape).to(setting.device)
    meta = {"img_shape": shape, "ori_shape": shape, "pad_shape": shape}
    if not setting.train:
        return network, lambda: network.encode_decode(x, [meta] * setting.batch)
    samples = []
    for label in labels:
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)

    def losses() -> Tensor:
        found = network.loss(x, samples)
        return sum(value for key, value in found.items() if "loss" in key)

    return network, losses


def convolutions_step(setting: Setting) -> Callable[[], None]:
    """Forward and backward of every convolution in our network, on inputs of the same shapes."""
    network, call = our_step(SIMILARITY, setting)
    network.train()
    found: list[tuple[nn.Conv2d, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(module, nn.Conv2d)
        # The images need no gradient.
        x = torch.randn_like(inputs[0]).requires_grad_(inputs[0].requires_grad)
        found.append((module, x))

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_pre_hook(record) for m in convolutions]
    call()
    for hook in hooks:
        hook.remove()

    def run() -> None:
        for module, x in found:
            out = F.conv2d(x, module.weight, module.bias, module.stride, module.padding,
                           module.dilation, module.groups)  # fmt: skip
            leaves = [t for t in (x, module.weight, module.bias) if t is not None]
            wanted = [t for t in leaves if t.requires_grad]
            torch.autograd.grad(out, wanted, torch.ones_like(out))

    return run


def prepare(name: str, setting: Setting) -> Callable[[], object]:
    """A call of a contestant: inference, or a training step."""
    warnings.simplefilter("ignore")  # mmsegmentation's remarks on its own defaults
    torch.manual_seed(0)
    if name == CONVOLUTIONS:
        return convolutions_step(setting)
    if name.startswith("ours"):
        network, call = our_step(name, setting)
    elif name.startswith(TORCHVISION):
        network, call = torchvision_step(name, setting)
    else:
        network, call = mmseg_step(setting)
    network.train(setting.train)
    if setting.compiled:
        network.compile()
    cast = partial(
        torch.autocast, setting.device, DTYPES[setting.dtype], enabled=setting.dtype != "fp32"
    )
    if not setting.train:

        def infer() -> Tensor:
            with torch.no_grad(), cast():
                return call()

        return infer
    # A learning rate of 0 keeps random weights from running away; the step costs the same.
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        with cast():
            loss = call()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def peak(name: str, setting: Setting) -> int:
    if setting.device == "cuda":
        return peak_device_memory(prepare(name, setting))
    return peak_memory(prepare, name, setting)


def title(setting: Setting) -> str:
    what = "training step" if setting.train else "inference"
    size = f"{setting.size}², M = {setting.num_classes}, batch {setting.batch}"
    return f"{what}, R-{setting.depth}, {size}"


def compare(setting: Setting, rounds: int) -> dict:
    """Ratios of all contestants at one setting: to the ASPP baseline, and ours to the others.

    Returns:
        {"rows": table rows, "claims": rows of the table of claims}.
    """
    names = contestants(setting)
    cell = title(setting)
    try:
        # Each is a fresh process: those of the claims, and the peers' usual layout.
        left_out = (LAST, FIRST, CONVOLUTIONS)
        of = [n for n in names if setting.train and not any(part in n for part in left_out)]
        memory = {name: peak(name, setting) for name in of}
    except (RuntimeError, MemoryError) as reason:  # a killed child, or CUDA's out of memory
        return {"rows": [[cell, "all", f"does not fit ({reason})", "", ""]], "claims": []}
    try:
        runs = {name: prepare(name, setting) for name in names}
        times = measure(runs, rounds=rounds, device=setting.device)
    except Unsteady as reason:
        return {"rows": [[cell, "all", f"not reported: {reason}", "", ""]], "claims": []}
    rows = []
    for name in names:
        row = [cell, name, f"{times.ratio(name, BASE):.3f}", f"{times.ratio(SIMILARITY, name):.3f}"]
        row.append(mebibytes(memory[name]) if name in memory else "")
        if setting.device == "cuda":
            middle = sorted(times.seconds[name])[len(times.seconds[name]) // 2]
            row[1] += f" ({setting.batch / middle:.1f} images/s)"
            own = kernels(runs[name])
            row += [f"{own.milliseconds:.1f} ms", str(own.launches)]
        rows.append(row)
    if MMSEG not in names:
        rows.append([cell, MMSEG, NO_MMSEG, "", ""])
    claims = [
        claim(f"{cell}: {name} / {BASE}", times.ratio(name, BASE), limit)
        for name, limit in ((UNIFORM, 1.03), (SIMILARITY, 1.1))
    ]
    if setting.train:
        claims += [
            claim(f"{cell}: memory, {name} / {BASE}", memory[name] / memory[BASE], 1.05)
            for name in (UNIFORM, SIMILARITY)
        ]
        if setting.depth == 50:
            found = times.ratio(SIMILARITY, TORCHVISION)
            claims.append(claim(f"{cell}: {SIMILARITY} / {TORCHVISION}", found, 0.8))
            floor = f"{times.ratio(CONVOLUTIONS, TORCHVISION):.3g}"
            claims.append([f"{cell}: {CONVOLUTIONS} / {TORCHVISION}", floor, "", ""])
        if setting.device == "cuda":
            share = 1 - 1 / times.ratio(SIMILARITY, BASE)
            claims.append(claim(f"{cell}: share of the graph", share, 0.05))
    else:
        others = [(TORCHVISION, 0.9), (f"{TORCHVISION}, {LAST}", 0.9)]
        if MMSEG in names:
            others.append((MMSEG, 0.75))
        claims += [
            claim(f"{cell}: {SIMILARITY} / {name}", times.ratio(SIMILARITY, name), limit)
            for name, limit in others
        ]
    return {"rows": rows, "claims": claims}


def settings(device: str, dtype: str, compiled: bool, full: bool) -> list[Setting]:
    common = {"device": device, "dtype": dtype, "compiled": compiled}
    if device == "cpu" and not full:
        size = shrunk(256)
        return [Setting(size, **common), Setting(size, train=True, batch=2, depth=50, **common)]
    shapes = [(769, 19, 2), (520, 171, 4)] if device == "cuda" else [(512, 19, 2), (769, 19, 2)]
    return [
        Setting(shrunk(size), classes, train, batch if train else 1, **common)
        for size, classes, batch in shapes
        for train in (False, True)
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="512² and 769², resumable")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="fp32", help="autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile all contestants")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_model.py: error: --device cuda: this machine has no CUDA device")
    one_thread()
    no_tf32()
    suffix = "_full" if args.full else ""
    if (args.device, args.dtype, args.compile) != ("cpu", "fp32", False):
        suffix += f"_{args.device}_{args.dtype}" + ("_compiled" if args.compile else "")
    path = (args.output or Path("benchmarks/results")) / "cells" / f"bench_model{suffix}.json"
    kept = Cells(path) if args.full else None
    rows: list[list[str]] = []
    claims: list[list[str]] = []

    def measured(setting: Setting) -> list[list[str]]:
        make = partial(compare, setting, args.rounds)
        found = make() if kept is None else kept.get(title(setting), make)
        claims.extend(found["claims"])
        return found["rows"]

    tables: list[str] = []
    for setting in settings(args.device, args.dtype, args.compile, args.full):
        rows += attempt(title(setting), partial(measured, setting))
        beside = mmseg_version() or NO_MMSEG
        if kept is not None:
            beside += f", cells measured at {kept.commits()}"
        tables = [  # after each setting, for runs that are cut off
            save(
                f"bench_model{suffix}",
                f"Whole networks, output stride 8 ({beside}); “ours” is {SIMILARITY}",
                [
                    "cell",
                    "network",
                    f"time / {BASE}",
                    "ours / it: time",
                    "extra memory",
                    *(["kernels alone", "launches"] if args.device == "cuda" else []),
                ],
                rows,
                args.output,
            ),
            save(
                f"bench_model_claims{suffix}",
                "Claims on whole networks",
                ["cell", "found", "target", ""],
                claims,
                args.output,
            ),
        ]
    print(*tables, sep="\n")
    sys.exit(exit_code())


if __name__ == "__main__":
    main()
