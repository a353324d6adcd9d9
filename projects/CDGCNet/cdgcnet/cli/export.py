"""Export a trained model to ONNX or to a pt2 archive of torch.export.

    %(prog)s --config-file CONFIG --weights FILE --format onnx --output model.onnx

The file maps images (B, H, W, 3), uint8 in BGR order, of any size and number to labels and logits
of the same size. Normalization is part of it; class names, colors and the config's inference
options are in its metadata. The file is compared with the model before it gets its name.
"""

import argparse
import time
from pathlib import Path

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.options import add_config_arguments, load_config
from cdgcnet.engine.export_metadata import OPSETS

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "config of the trained model", weights=True)
    parser.add_argument(
        "--format", choices=tuple(SUFFIXES), default="onnx", help="default: %(default)s"
    )
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--part",
        choices=("network", "graph"),
        default="network",
        help="the whole network (default), or its class graph from features and coarse logits to "
        "refined features",
    )
    parser.add_argument(
        "--coarse", action="store_true", help="the network also returns its coarse logits"
    )
    parser.add_argument(
        "--opset",
        type=int,
        help=f"of ONNX: {OPSETS[0]} to {OPSETS[-1]}, default 18; 17 is for older runtimes, such as "
        "ONNX Runtime 1.12",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError, ValueError: naming the argument.
    """
    suffix = SUFFIXES[args.format]
    if args.output.suffix != suffix:
        raise UsageError(f"--output {args.output}: expected a name that ends with {suffix}")
    if args.coarse and args.part == "graph":
        raise UsageError("--coarse: the graph alone has no coarse logits, it takes them as input")
    if args.opset is not None and args.format == "pt2":
        raise UsageError("--opset: only ONNX files have one, not --format pt2")
    if args.opset is not None and args.opset not in OPSETS:
        raise UsageError(f"--opset {args.opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    if args.output.is_dir():
        raise ValueError(f"--output {args.output}: it is a folder; expected the name of a file")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; choose another --output or add --overwrite")


def run(args: argparse.Namespace) -> None:
    check_arguments(args)
    start = time.time()
    # The export needs no accelerator, and the file runs in single precision.
    overrides = ["MODEL.WEIGHTS", args.weights, "MODEL.DEVICE", "cpu", "TEST.PRECISION", "fp32"]
    cfg = load_config(args, overrides, datasets=False)

    from cdgcnet import Predictor
    from cdgcnet.export.exporter import write_export
    from cdgcnet.export.preparation import prepare_export

    export = prepare_export(
        Predictor(cfg),
        args.part,
        coarse=args.coarse,
        opset=(args.opset or 18) if args.format == "onnx" else None,
    )
    difference = write_export(export, args.output, args.format)
    print(
        f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB in "
        f"{time.time() - start:.0f} s; differs from the model by at most {difference:.1g}"
    )
