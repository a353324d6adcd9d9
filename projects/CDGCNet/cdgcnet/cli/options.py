"""Arguments that several subcommands share, and what they lead to."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdgcnet.cli.errors import UsageError
from cdgcnet.config.files import find_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.data.catalog import Metadata

    from cdgcnet import Predictor


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


def load_predictor(args: argparse.Namespace, tta: bool = False) -> tuple["Predictor", "Metadata"]:
    """The trained network of --config-file and --weights, and the names and colors of its classes.

    A model that does not carry its classes has those of the first test set.

    Args:
        args: has ``config_file``, ``weights`` and ``opts``.
        tta: average over TEST.AUG.{SCALES, FLIP}.

    Raises:
        UsageError: for overrides that are not pairs.
        ValueError, OSError: naming the file, the key or the dataset.
    """
    cfg = load_config(args, ("MODEL.WEIGHTS", args.weights), datasets=False)

    from cdgcnet import Predictor

    predictor = Predictor(cfg, tta=tta)
    if predictor.metadata is not None:
        return predictor, predictor.metadata

    from detectron2.data import MetadataCatalog

    from cdgcnet import register_all, register_folders
    from cdgcnet.data.preflight import check_datasets

    register_all()
    register_folders(cfg)
    check_datasets(cfg, train=False)
    return predictor, MetadataCatalog.get(cfg.DATASETS.TEST[0])
