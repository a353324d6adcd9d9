#!/usr/bin/env python
"""Convert an ImageNet ResNet to Detectron2's parameter names, and note where it is from.

    python tools/convert_weights.py resnet101.pth resnet101_d2.pth
    python tools/convert_weights.py resnet50_caffe.pth resnet50_d2.pth --stride-in-1x1
    python tools/convert_weights.py resnet50.pth resnet101_grown.pth --grow

Known by their keys: torchvision's ResNet-18 to -152; the deep stem 64-64-128 of MIT's and hszhao's
PSPNets; OpenMMLab's v1c (32-32-64); Detectron2's own, R-52.pkl and R-103.pkl among them. A key that
does not fit is an error. --grow makes a ResNet-101 of a ResNet-50 by 17 blocks that add zero.

train_net.py reads all of these as they are (MODEL.WEIGHTS). From the converted file it also knows
stem, mean, std and the position of the stride, and refuses a config that has others.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cdgcnet.checkpoint.convert import convert_file
from cdgcnet.checkpoint.provenance import Provenance
from cdgcnet.utils.io import atomic_write


def convert(source: Path, target: Path, **stated: object) -> tuple[int, Provenance]:
    """Write {"model": {"backbone.…": tensor}, "provenance": …} to ``target``.

    Args:
        source: file of a known format.
        target: new file.
        stated: arguments of :func:`cdgcnet.checkpoint.convert.convert_file`.

    Returns:
        The number of tensors, and what is known of them.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: on paths or contents that do not fit.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists; nothing was written")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent}")
    state, provenance = convert_file(source, **stated)  # type: ignore[arg-type]
    model = {f"backbone.{key}": value for key, value in state.items()}
    content = {"model": model, "__author__": provenance.format, "provenance": provenance.stored()}
    with atomic_write(target) as tmp_path:  # a killed run leaves no half target
        torch.save(content, tmp_path)
    return len(model), provenance


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="state dict (.pth) or Detectron2's .pkl")
    parser.add_argument("target", type=Path, help="file to write (.pth)")
    parser.add_argument(
        "--stride-in-1x1", action="store_true", help="MSRA's and Caffe's; default: in the 3x3"
    )
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), default="RGB")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar="V", help="per channel, 0 to 255"
        )
    parser.add_argument("--grow", action="store_true", help="ResNet-50 to ResNet-101, zero blocks")
    args = parser.parse_args(argv)
    try:
        count, provenance = convert(
            args.source,
            args.target,
            channel_order=args.channel_order,
            mean=args.mean,
            std=args.std,
            stride_in_1x1=args.stride_in_1x1,
            grow=args.grow,
        )
    except (OSError, ValueError) as error:
        parser.exit(1, f"convert_weights.py: error: {error}\n")
    print(f"{count} tensors written to {args.target}\n{provenance.line()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
