"""Arguments that several subcommands share, and what they lead to."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdgcnet.cli.errors import UsageError
from cdgcnet.config.files import find_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.data.catalog import Metadata

    from cdgcnet import Predictor
    from cdgcnet.engine.onnx_predictor import OnnxPredictor


def integer_from(minimum: int) -> type:
    """An argparse type: an integer that is at least ``minimum``."""

    def parse(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value}: expected {minimum} or more")
        return value

    parse.__name__ = "integer"  # argparse names the type in its message about other text
    return parse  # type: ignore[return-value]


def add_config_arguments(
    parser: argparse.ArgumentParser, help: str, *, weights: bool = False, required: bool = True
) -> None:
    """Add --config-file, --opts and, where ``weights`` is true, --weights."""
    parser.add_argument(
        "--config-file", required=required, metavar="YAML", help=f"{help}: a file or a shipped name"
    )
    if weights:
        parser.add_argument(
            "--weights", required=required, metavar="FILE", help="checkpoint, e.g. model_final.pth"
        )
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides of config keys"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config-file, --weights and --opts, --onnx in their place, and --tta."""
    add_config_arguments(parser, "config of the trained model", weights=True, required=False)
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        help="a file of cdgcnet export, in place of a config and weights; needs ONNX Runtime "
        "instead of PyTorch and Detectron2, and has no coarse prediction; the only override is "
        "INPUT.MAX_PIXELS",
    )
    parser.add_argument("--tta", action="store_true", help="multi-scale and flip, as in TEST.AUG")


def check_model_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: if the arguments name no model, or two, or override what a file contains.
    """
    if args.onnx:
        if args.config_file or args.weights:
            raise UsageError(
                "--onnx: the file contains the model; leave out the other model options"
            )
        image_limit(args.opts, _NO_OVERRIDES)
    elif not (args.config_file and args.weights):
        raise UsageError("expected either --config-file and --weights, or --onnx")


_NO_OVERRIDES = "--onnx: the file contains the model; leave out the other model options, except"


def image_limit(opts: Sequence[str], refusal: str) -> int:
    """INPUT.MAX_PIXELS for commands without a config, whose only key it is.

    It protects the memory of the machine that reads the images. The rules for config keys cannot
    check it, because they need Detectron2.

    Args:
        opts: KEY VALUE, or nothing for the default.
        refusal: how the message about other keys begins.

    Raises:
        UsageError: for overrides of other keys, or a value that is no positive integer.
    """
    from cdgcnet.data.decoding import MAX_PIXELS

    if not opts:
        return MAX_PIXELS
    if len(opts) != 2 or opts[0] != "INPUT.MAX_PIXELS":
        raise UsageError(f"{refusal} --opts INPUT.MAX_PIXELS N")
    if not opts[1].isdecimal() or int(opts[1]) < 1:
        raise UsageError(f"INPUT.MAX_PIXELS is {opts[1]}; expected an integer that is at least 1")
    return int(opts[1])


def check_overrides(opts: Sequence[str]) -> None:
    """
    Raises:
        UsageError: if the overrides are not pairs.
    """
    if len(opts) % 2:
        raise UsageError(f"overrides come in pairs KEY VALUE; found {' '.join(opts)}")


def load_config(
    args: argparse.Namespace,
    overrides: Sequence[str] = (),
    *,
    train: bool = False,
    datasets: bool = True,
) -> "CfgNode":
    """The checked config of --config-file and --opts, with its datasets registered.

    Args:
        args: has ``config_file`` and ``opts``.
        overrides: KEY VALUE pairs that come after --opts.
        train: check the training sets as well as the test sets.
        datasets: register and check the datasets at all.

    Raises:
        UsageError: for overrides that are not pairs.
        ValueError, OSError: naming the file or the key.
    """
    check_overrides(args.opts)
    path = find_config(args.config_file)

    from cdgcnet import load_cfg, register_all, register_folders
    from cdgcnet.data.preflight import check_datasets

    cfg = load_cfg(str(path), [*args.opts, *overrides])
    if datasets:
        register_all()
        register_folders(cfg)
        check_datasets(cfg, train=train)
    return cfg


def _warn_of_other_classes(cfg: "CfgNode", weights: str, found: Sequence[str]) -> None:
    from cdgcnet.checkpoint.class_metadata import class_difference
    from cdgcnet.data.datasets.custom import folder_classes

    for name in cfg.DATASETS.TEST[:1]:
        if difference := class_difference(found, folder_classes(cfg, name)):
            print(
                f"warning: {weights}: {difference} (DATASETS.TEST {name}); the classes of the "
                "predictions are those of the file",
                file=sys.stderr,
            )


def load_predictor(
    args: argparse.Namespace,
) -> tuple["Predictor | OnnxPredictor", "Metadata"]:
    """The trained network, and the names and colors of its classes.

    A checkpoint that does not carry its classes has those of the first test set. If that set has
    other classes, in DATASETS.FOLDERS, a warning names the difference.

    Args:
        args: those of :func:`add_model_arguments`.

    Raises:
        UsageError: for overrides that are not pairs.
        ValueError, OSError: naming the file, the key or the dataset.
        ModuleNotFoundError: without ONNX Runtime, for --onnx.
    """
    if args.onnx:
        from cdgcnet.engine.onnx_predictor import OnnxPredictor

        exported = OnnxPredictor(args.onnx, args.tta, flush_subnormals=True)
        exported.max_pixels = image_limit(args.opts, _NO_OVERRIDES)
        if exported.metadata is None:
            raise ValueError(
                f"{args.onnx} names no classes; set MODEL.CLASS_NAMES and export the model again"
            )
        return exported, exported.metadata
    cfg = load_config(args, ("MODEL.WEIGHTS", args.weights), datasets=False)

    from cdgcnet import Predictor
    from cdgcnet.engine.subnormals import flush_subnormals

    flush_subnormals()
    predictor = Predictor(cfg, tta=args.tta)
    if predictor.metadata is not None:
        _warn_of_other_classes(cfg, args.weights, predictor.metadata.stuff_classes)
        return predictor, predictor.metadata

    from detectron2.data import MetadataCatalog

    from cdgcnet import register_all, register_folders
    from cdgcnet.data.preflight import check_datasets

    register_all()
    register_folders(cfg)
    check_datasets(cfg, train=False)
    return predictor, MetadataCatalog.get(cfg.DATASETS.TEST[0])
