"""Turns a ResNet-50 into a ResNet-101 that computes the same."""

from collections.abc import Mapping

import torch
from torch import Tensor

from cdgcnet.checkpoint.completeness import check_complete


def deepen_resnet50_to_101(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add 17 blocks to the end of a ResNet-50's res4 without changing what it computes.

    The last norm of each new block has weight and bias zero, so the block is relu(x + 0) = x for
    its inputs x >= 0; training changes that. This is not a ResNet-101 trained on ImageNet, and
    every result that uses it must say so.

    Args:
        state: in Detectron2's names.

    Raises:
        ValueError: for another depth.
    """
    depth, _ = check_complete(state)
    if depth != 50:
        raise ValueError(f"only a ResNet-50 can be grown to a ResNet-101; this is a ResNet-{depth}")
    grown = dict(state)
    generator = torch.Generator().manual_seed(0)
    last = {key: value for key, value in state.items() if key.startswith("res4.5.")}
    for block in range(6, 23):
        for key, value in last.items():
            new = torch.zeros_like(value)
            if key.endswith((".norm.running_var", ".norm.weight")):
                new.fill_(0.0 if key.endswith("conv3.norm.weight") else 1.0)
            elif ".norm." not in key:  # He's, as Detectron2 starts its convolutions
                fan_out = value.shape[0] * value[0, 0].numel()
                new.normal_(std=(2 / fan_out) ** 0.5, generator=generator)
            grown[key.replace("res4.5.", f"res4.{block}.")] = new
    return grown
