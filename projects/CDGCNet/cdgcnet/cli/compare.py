"""Find out whether the class-wise graph helps on your data.

    %(prog)s --config-file CONFIG --weights BACKBONE --output DIR
    %(prog)s --render DIR/records --into report.md

The features of a frozen backbone are computed once and kept on disk. Small heads with different
context modules are trained on them, which takes minutes per head on one CPU core. DIR gets the
records, table.md and table.png. Run the same command again to continue: finished rows are not
repeated. docs/compare.md explains how to read the table.
"""

import argparse
import shlex
import sys
from pathlib import Path

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.options import add_config_arguments, integer_from, load_config
from cdgcnet.comparison.options import Options, Schedule


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share, 0 to below 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "dataset, backbone and graph", weights=True, required=False)
    add = parser.add_argument
    add("--output", type=Path, metavar="DIR", help="default: output/compare/DATASET")
    add("--cache", type=Path, metavar="DIR", help="of the features; default: OUTPUT/features")
    add("--render", type=Path, metavar="DIR", help="only print the table of the records in DIR")
    add(
        "--into",
        type=Path,
        metavar="FILE",
        help="with --render: write the table into a Markdown file, between the comments "
        "'compare NAME' and 'end of compare NAME', where NAME is the name of DIR",
    )
    _add_rows(parser.add_argument_group("rows"))
    _add_features(parser.add_argument_group("images and features"))
    _add_training(parser.add_argument_group("training of a head"))
    group = parser.add_argument_group("running")
    group.add_argument(
        "--jobs", type=integer_from(1), metavar="N", help="rows side by side; default: one per CPU"
    )
    group.add_argument(
        "--time-budget", type=_positive, metavar="MINUTES", help="start no row that would end later"
    )


def _add_rows(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--heads",
        default=Options.heads,
        metavar="LIST",
        help="graph:HEADS=1,FUSION=sum sets keys below MODEL.CDGC (default: %(default)s)",
    )
    group.add_argument(
        "--context", default=Options.contexts, metavar="LIST", help="default: %(default)s"
    )
    group.add_argument(
        "--seeds", type=integer_from(1), default=Options.seeds, metavar="N",
        help="seeds 1 to N (default: %(default)s)",
    )  # fmt: skip


def _add_features(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--holdout", type=_share, default=Options.holdout, metavar="SHARE",
        help="score this part of the training images and leave DATASETS.TEST unread, for choices "
        "that come before the final rows",
    )  # fmt: skip
    for name, default, words in (
        ("--train-images", Options.train_images, "at most; 0: all"),
        ("--eval-images", Options.eval_images, "at most; 0: all"),
    ):
        group.add_argument(
            name, type=integer_from(0), default=default, metavar="N", help=f"{words} (%(default)s)"
        )
    group.add_argument(
        "--shorter-side", type=integer_from(8), default=Options.shorter_side, metavar="PIXELS",
        help="of the backbone's input (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--channels", type=integer_from(1), default=Options.channels, metavar="C",
        help="principal components that are kept of the features (%(default)s)",
    )  # fmt: skip


def _add_training(group: argparse._ArgumentGroup) -> None:
    one = integer_from(1)
    for name, kind, default, words in (
        ("--steps", one, Schedule.steps, "of AdamW"),
        ("--batch", one, Schedule.batch, "crops per step"),
        ("--crop", one, Schedule.crop, "side in nodes of the feature map"),
        ("--width", one, Schedule.width, "channels of a head"),
        ("--learning-rate", _positive, Schedule.learning_rate, "peak of one cycle"),
    ):
        group.add_argument(name, type=kind, default=default, help=f"{words} (%(default)s)")
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 on devices that multiply it natively",
    )


def run(args: argparse.Namespace) -> int:
    if args.render is not None:
        return _render(args.render, args.into)
    for name in ("config_file", "weights"):
        if not getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is required, unless --render is given")
    if args.into is not None:
        raise UsageError("--into goes with --render")
    cfg = load_config(args, ("MODEL.WEIGHTS", args.weights), train=True)

    from cdgcnet.comparison.comparison import choose_precision, compare

    schedule = Schedule(
        steps=args.steps,
        batch=args.batch,
        crop=args.crop,
        learning_rate=args.learning_rate,
        width=args.width,
        precision=choose_precision(args.precision, cfg.MODEL.DEVICE),
    )
    options = Options(
        heads=args.heads,
        contexts=args.context,
        seeds=args.seeds,
        holdout=args.holdout,
        train_images=args.train_images,
        eval_images=args.eval_images,
        shorter_side=args.shorter_side,
        channels=args.channels,
        output=args.output,
        cache=args.cache,
        jobs=args.jobs,
        time_budget=args.time_budget,
        command=shlex.join(["cdgcnet", *sys.argv[1:]]),
    )
    return compare(cfg, schedule, options)


def _render(records: Path, into: Path | None) -> int:
    from cdgcnet.comparison.records import load_records
    from cdgcnet.comparison.report import render, write_between

    text = render(load_records(records))
    if into is None:
        print(text)
    else:
        write_between(into, records.name, text)
    return 0
