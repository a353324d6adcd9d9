"""Evaluate trained weights on DATASETS.TEST.

    %(prog)s --config-file configs/… [--num-gpus N] MODEL.WEIGHTS FILE [TEST.AUG.ENABLED True …]
    %(prog)s --config-file configs/… --resume

The scores are written to OUTPUT_DIR/results.json. --resume evaluates the last checkpoint in
OUTPUT_DIR.
"""

import argparse

from cdgcnet.cli.train import add_run_arguments, run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run_arguments(parser)
    parser.set_defaults(eval_only=True)
