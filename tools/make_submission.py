#!/usr/bin/env python
"""Make and verify a package for the test server of Cityscapes or PASCAL VOC.

    python tools/make_submission.py cityscapes --config-file CONFIG --weights FILE \\
        --output FILE.zip [--num-gpus N] [--opts TEST.AUG.ENABLED True …]
    python tools/make_submission.py voc --labels FOLDER --output FILE.tgz
    python tools/make_submission.py cityscapes --verify FILE.zip

The first form predicts the test set (multi-scale and flip if TEST.AUG.ENABLED) into OUTPUT_DIR;
interrupted, the same command goes on. The second packs label maps of classes that are there
already. A package gets its name only after everything in it was verified: number, names, sizes,
pixel formats and values. COCO-Stuff-10k has no server.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.engine import launch
from detectron2.utils import comm

from cdgcnet import register_all
from cdgcnet.engine.defaults import predict_test_set, setup
from cdgcnet.evaluation.submission import (
    Server,
    check_package_name,
    pack,
    server_of,
    verify,
)
from cdgcnet.evaluation.writers import label_paths

COMPETITIONS = ("comp5", "comp6")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=("cityscapes", "voc"))
    parser.add_argument("--config-file", default="", help="YAML of the trained model")
    parser.add_argument("--weights", default="", help="its checkpoint, e.g. model_final.pth")
    parser.add_argument("--labels", type=Path, help="folder of predicted label maps; no prediction")
    parser.add_argument("--verify", type=Path, metavar="PACKAGE", help="look at a package, no more")
    parser.add_argument("--output", type=Path, help="the package to write")
    parser.add_argument("--dataset", help="registered name; default: the benchmark's test set")
    parser.add_argument(
        "--competition", choices=COMPETITIONS, default="comp6", help="of VOC (comp5: VOC data only)"
    )
    parser.add_argument("--num-gpus", type=int, default=1)
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    return parser


def check_arguments(args: argparse.Namespace, server: Server) -> None:
    """
    Raises:
        ValueError, FileExistsError: for options that do not go together, or an --output that
            cannot be.
    """
    ways = {"--config-file": args.config_file, "--labels": args.labels, "--verify": args.verify}
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        raise ValueError(
            "give one of --config-file, --labels and --verify; found "
            + (" and ".join(given) or "none")
        )
    if bool(args.weights) != bool(args.config_file):
        raise ValueError("--config-file and --weights go together; one of them is missing")
    if args.opts and not args.config_file:
        raise ValueError(f"--opts {' '.join(args.opts)}: nothing is predicted; remove it")
    if args.verify:
        return
    if args.output is None:
        raise ValueError("--output is missing: the package to write")
    check_package_name(server, args.output)
    if args.output.exists():  # known now, not after hours of prediction
        raise FileExistsError(f"{args.output} exists; choose another --output")


def predict(args: argparse.Namespace) -> None:
    """On each process: predict its share; on the main one, pack."""
    server = server_of(args.benchmark, args.competition)
    name = args.dataset or server.dataset
    keys = [
        "MODEL.WEIGHTS",
        args.weights,
        "DATASETS.TEST",
        f"('{name}',)",
        "TEST.SAVE_LABELS",
        "True",
        "TEST.RESUME",
        "True",
    ]
    keys += ["TEST.ORACLE", "False", "TEST.PICTURES", "False"]
    try:
        start = argparse.Namespace(
            config_file=args.config_file, opts=[*args.opts, *keys], eval_only=True, resume=False
        )
        folder = predict_test_set(setup(start))
        if comm.is_main_process():
            finish(args, folder)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"make_submission.py: error: {error}" if comm.is_main_process() else 1)


def finish(args: argparse.Namespace, folder: Path) -> None:
    """Pack the label maps in a folder."""
    server = server_of(args.benchmark, args.competition)
    images = [d["file_name"] for d in DatasetCatalog.get(args.dataset or server.dataset)]
    paths = label_paths(folder, images)
    pack(server, images, [paths[image] for image in images], args.output)
    print(f"{args.output}: {len(images)} label maps, verified")


def main(argv: Sequence[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    server = server_of(args.benchmark, args.competition)
    try:
        check_arguments(args, server)
        if args.config_file:
            launch(predict, args.num_gpus, dist_url="auto", args=(args,))
            return 0
        register_all()
        if args.labels:
            if not args.labels.is_dir():
                raise FileNotFoundError(f"--labels {args.labels}: there is no such folder")
            finish(args, args.labels)
            return 0
        images = [d["file_name"] for d in DatasetCatalog.get(args.dataset or server.dataset)]
        reasons = verify(server, images, args.verify)
    except (ValueError, OSError, KeyError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        parser.exit(1, f"make_submission.py: error: {message}\n")
    for reason in reasons:
        print(f"{args.verify}: {reason}", file=sys.stderr)
    print(f"{args.verify}: {'refused' if reasons else f'{len(images)} label maps, as expected'}")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
