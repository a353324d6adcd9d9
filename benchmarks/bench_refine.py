#!/usr/bin/env python
"""What ``cdgc.refine`` adds to networks of other libraries: time, parameters, memory.

    python benchmarks/bench_refine.py [--output benchmarks/results] [--rounds N]

Each network has random weights and 21 classes and sees one image of 256 x 256 pixels. The refined
network is timed beside the unrefined one, in inference and in a training step (forward, loss,
backward). The weights are random, so the coarse prediction often has a few large classes; the time
of a graph that every pixel receives from hardly depends on it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from protocol import (
    Unsteady,
    arguments,
    measure,
    mebibytes,
    one_thread,
    peak_memory,
    report,
)
from torch import Tensor, nn

import cdgc

CLASSES, SIDE = 21, 256


def torchvision_net(name: str) -> nn.Module:
    import torchvision

    build = getattr(torchvision.models.segmentation, name)
    return build(weights=None, weights_backbone=None, num_classes=CLASSES)


def unet() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet34", encoder_weights=None, classes=CLASSES)


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES))  # B0


# Name -> builder, name of the classifier, stride of its features.
HOSTS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "torchvision DeepLabV3, ResNet-50": (
        partial(torchvision_net, "deeplabv3_resnet50"),
        "classifier.4",
        8,
    ),
    "torchvision FCN, ResNet-50": (partial(torchvision_net, "fcn_resnet50"), "classifier.4", 8),
    "torchvision LR-ASPP, MobileNetV3": (
        partial(torchvision_net, "lraspp_mobilenet_v3_large"),
        "classifier.high_classifier",
        16,
    ),
    "SegFormer-B0": (segformer, "decode_head.classifier", 4),
    "smp Unet, ResNet-34": (unet, "segmentation_head.0", 1),
}


def build(host: str, refined: bool) -> nn.Module:
    torch.manual_seed(0)
    make, classifier, _ = HOSTS[host]
    net = make()
    return cdgc.refine(net, classifier, CLASSES) if refined else net


def logits_of(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output["out"]


def prepare(host: str, refined: bool, training: bool) -> Callable[[], Any]:
    """A function that runs one inference or one training step."""
    one_thread()
    net = build(host, refined).train(training)
    images = torch.randn(1, 3, SIDE, SIDE)
    labels = torch.randint(CLASSES, (1, SIDE, SIDE))
    for module in net.modules():  # one image: batch norm after global pooling needs two values
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    head = net.get_submodule(HOSTS[host][1])

    def infer() -> Tensor:
        with torch.no_grad():
            return logits_of(net(images))

    def step() -> None:
        logits = logits_of(net(images))
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels)
        if isinstance(head, cdgc.RefinedClassifier):
            loss = loss + head.coarse_loss(labels)
        net.zero_grad()
        loss.backward()

    return step if training else infer


def ratio(host: str, training: bool, rounds: int) -> str:
    contestants = {
        name: prepare(host, refined, training)
        for name, refined in (("unrefined", False), ("refined", True))
    }
    try:
        return f"{measure(contestants, rounds=rounds).ratio('refined', 'unrefined'):.2f}"
    except Unsteady as reason:
        return f"unsteady ({reason})"


def main() -> None:
    args = arguments(__doc__).parse_args()
    one_thread()
    rows = []
    for host, (_, _, stride) in HOSTS.items():
        count = [sum(p.numel() for p in build(host, refined).parameters()) for refined in (0, 1)]
        memory = [peak_memory(prepare, host, refined, True) for refined in (False, True)]
        rows.append(
            [
                host,
                f"{(SIDE // stride) ** 2}",
                ratio(host, False, args.rounds),
                ratio(host, True, args.rounds),
                f"{count[0] / 1e6:.1f} → {count[1] / 1e6:.1f}",
                f"{mebibytes(memory[0])} → {mebibytes(memory[1])}",
            ]
        )
        print(rows[-1], flush=True)
    report(
        "bench_refine",
        f"Networks refined by the graph / as they were, one image of {SIDE} x {SIDE}, {CLASSES} "
        "classes",
        [
            "network",
            "feature pixels (at most 16384 nodes)",
            "inference, CPU time",
            "training step, CPU time",
            "million parameters",
            "extra memory of a training step",
        ],
        rows,
        args.output,
    )


if __name__ == "__main__":
    main()
