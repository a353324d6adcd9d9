"""Show what training sees: augmented images, their labels, and both together.

    %(prog)s --config-file CONFIG --output GRID.png

The samples are the first of a run with this config and its SEED. Ignored pixels are striped;
the legend lists the classes that occur.
"""

import argparse
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.options import add_config_arguments, integer_from, load_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode

MAX_SAMPLES = 64
MAX_COLUMNS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "config of the run")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--dataset", help="instead of DATASETS.TRAIN")
    parser.add_argument(
        "--num", type=integer_from(1), default=8, help=f"samples, at most {MAX_SAMPLES}"
    )
    parser.add_argument(
        "--columns", type=integer_from(1), help=f"samples in a row, at most {MAX_COLUMNS}"
    )
    parser.add_argument("--seed", type=integer_from(0), help="instead of the config's SEED")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    parser.add_argument(
        "--no-augmentation", action="store_true", help="the same files, whole and unchanged"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError, ValueError: naming the argument.
    """
    if args.num > MAX_SAMPLES:
        raise UsageError(f"--num {args.num}: expected 1 to {MAX_SAMPLES}")
    if args.columns is not None and args.columns > MAX_COLUMNS:
        raise UsageError(f"--columns {args.columns}: expected 1 to {MAX_COLUMNS}")
    if args.output.suffix.lower() != ".png":
        raise UsageError(f"--output {args.output}: expected a name that ends with .png")
    if args.output.is_dir():
        raise ValueError(f"--output {args.output}: it is a folder; expected the name of a file")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; choose another --output or add --overwrite")


def first_samples(cfg: "CfgNode", num: int, augmented: bool) -> list[dict]:
    """The first samples of a run with this config, as the training loader delivers them.

    Args:
        cfg: with cfg.SEED >= 0.
        num: how many.
        augmented: with the augmentation; otherwise the same files as they are.

    Raises:
        ValueError, OSError: for data that is not there or not sound.
    """
    from cdgcnet import SemSegMapper, Trainer

    cfg = cfg.clone()
    # Neither key changes a sample: a batch depends only on the seed and its number.
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.CACHE = ""
    loader = Trainer.build_train_loader(cfg)
    loader.seed = cfg.SEED
    if not augmented:
        loader.mapper = SemSegMapper(cfg, is_train=True, augmentations=[])
    return list(islice(chain.from_iterable(loader), num))


def run(args: argparse.Namespace) -> None:
    check_arguments(args)
    overrides = ["MODEL.DEVICE", "cpu"]  # looking at data needs no GPU
    if args.dataset:
        overrides += ["DATASETS.TRAIN", f"('{args.dataset}',)"]
    if args.seed is not None:
        overrides += ["SEED", str(args.seed)]
    cfg = load_config(args, overrides, train=True)

    from detectron2.data import MetadataCatalog

    from cdgcnet.visualization.training_samples import draw_grid

    if cfg.SEED < 0:
        print("SEED is -1, so a run would draw its own seed; these samples are of SEED 0")
        cfg.SEED = 0
    samples = first_samples(cfg, args.num, augmented=not args.no_augmentation)
    shown = "without augmentation" if args.no_augmentation else "as training sees it"
    draw_grid(
        samples,
        cfg.INPUT.FORMAT,
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
        f"{' + '.join(cfg.DATASETS.TRAIN)}, SEED {cfg.SEED}, {shown}",
        args.output,
        args.columns,
    )
    print(f"{len(samples)} samples: {args.output}")
