"""Train a network, or resume an interrupted run.

    %(prog)s --config-file configs/… [--num-gpus N] [KEY VALUE …]
    %(prog)s --config-file configs/… --resume
    %(prog)s --config-file configs/… --eval-only MODEL.WEIGHTS FILE

The last evaluation of DATASETS.TEST is written to OUTPUT_DIR/results.json.
"""

import argparse

from cdgcnet.cli.launch import add_launch_arguments, launch_processes
from cdgcnet.cli.options import check_overrides
from cdgcnet.config.files import find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, like `cdgcnet eval`"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that training and evaluation share: those of Detectron2's ``train_net.py``."""
    parser.add_argument(
        "--config-file",
        required=True,
        action="append",
        metavar="YAML",
        help="a file or a shipped name; repeat the option to merge further files on top",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint in OUTPUT_DIR"
    )
    add_launch_arguments(parser)
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="overrides of config keys, after all other arguments",
    )


def run(args: argparse.Namespace) -> int:
    check_overrides(args.opts)
    args.config_file = [str(find_config(name)) for name in args.config_file]
    return launch_processes(train_or_evaluate, args)


def train_or_evaluate(args: argparse.Namespace) -> None:
    """The work of one process."""
    from cdgcnet.engine.defaults import run as run_training
    from cdgcnet.engine.defaults import setup

    cfg = setup(args)
    run_training(cfg, eval_only=args.eval_only, resume=args.resume)
