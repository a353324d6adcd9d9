"""Convert an ImageNet ResNet to Detectron2's parameter names, and record where it comes from.

    %(prog)s resnet101.pth resnet101_d2.pth
    %(prog)s resnet50_caffe.pth resnet50_d2.pth --stride-in-1x1
    %(prog)s resnet50.pth resnet101_grown.pth --grow

The format is recognized by the keys: torchvision's ResNet-18 to -152; the deep stem 64-64-128 of
MIT's and hszhao's PSPNets; OpenMMLab's v1c (32-32-64); Detectron2's own, including R-52.pkl and
R-103.pkl. A key that does not fit is an error. --grow turns a ResNet-50 into a ResNet-101 by
adding 17 blocks that add zero.

Training reads all of these formats directly (MODEL.WEIGHTS). A converted file also states the
stem, mean, std and the position of the stride, and a config that contradicts them is refused. A
file that is converted again keeps what it states.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdgcnet.checkpoint.provenance import Provenance


SUFFIXES = (".pth", ".pt")  # of what torch.save writes


def convert(source: Path, target: Path, **stated: object) -> "tuple[int, Provenance]":
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
    import torch

    from cdgcnet.checkpoint.convert import convert_file
    from cdgcnet.utils.io import atomic_write

    if target.suffix not in SUFFIXES:
        raise ValueError(
            f"{target}: expected a name with {' or '.join(SUFFIXES)}; torch's format is written"
        )
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="state dict (.pth) or Detectron2's .pkl")
    parser.add_argument("target", type=Path, help="file to write (.pth)")
    parser.add_argument(
        "--stride-in-1x1",
        action="store_true",
        help="the stride is in the 1x1 convolution (MSRA, Caffe); default: in the 3x3",
    )
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="default: RGB")
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs=3, metavar="V", help="per channel, 0 to 255"
        )
    parser.add_argument("--grow", action="store_true", help="ResNet-50 to ResNet-101, zero blocks")


def run(args: argparse.Namespace) -> None:
    count, provenance = convert(
        args.source,
        args.target,
        channel_order=args.channel_order,
        mean=args.mean,
        std=args.std,
        stride_in_1x1=args.stride_in_1x1,
        grow=args.grow,
    )
    print(f"{count} tensors written to {args.target}\n{provenance.line()}")
