#!/usr/bin/env python
"""Convert a torchvision ResNet state dict to Detectron2's parameter names.

    python tools/convert_weights.py resnet101.pth resnet101_d2.pth

train_net.py reads torchvision files as they are (MODEL.WEIGHTS); the converted file is for other
Detectron2 projects.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cdgcnet.weights import convert_torchvision_resnet, is_torchvision_resnet


def convert(source: Path, target: Path) -> int:
    """Write {"model": {"backbone.…": tensor}} to ``target``; returns the number of tensors.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: on paths or contents that do not fit.
    """
    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such file")
    if target.exists():
        raise FileExistsError(f"{target} exists; nothing was written")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for files that are no checkpoint
        raise ValueError(f"{source}: not a file of tensors ({error})") from error
    if not isinstance(state, dict) or not is_torchvision_resnet(state):
        raise ValueError(
            f"{source}: not a torchvision ResNet state dict (expected keys conv1.weight, layer1.…)"
        )
    model = {f"backbone.{k}": v for k, v in convert_torchvision_resnet(state).items()}
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent}")
    beside = target.with_name(target.name + ".part")  # a killed run leaves no half target
    torch.save({"model": model, "__author__": "torchvision"}, beside)
    beside.replace(target)
    return len(model)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="torchvision state dict (.pth)")
    parser.add_argument("target", type=Path, help="file to write (.pth)")
    args = parser.parse_args(argv)
    try:
        count = convert(args.source, args.target)
    except (OSError, ValueError) as error:
        parser.exit(1, f"convert_weights.py: error: {error}\n")
    print(f"{count} tensors written to {args.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
