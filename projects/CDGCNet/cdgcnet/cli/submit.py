"""Make and verify a package for the test server of Cityscapes or PASCAL VOC.

    %(prog)s cityscapes --config-file CONFIG --weights FILE \\
        --output FILE.zip [--num-gpus N] [--opts TEST.AUG.ENABLED True …]
    %(prog)s voc --labels FOLDER --output FILE.tgz
    %(prog)s cityscapes --verify FILE.zip

The first form predicts the test set (multi-scale and flip if TEST.AUG.ENABLED) into OUTPUT_DIR; the
same command continues an interrupted run. The second packs label maps that are already there. A
package gets its name only after everything in it has been verified: number, names, sizes, pixel
formats and values. COCO-Stuff-10k has no server.
"""

import argparse
import sys
from pathlib import Path

from cdgcnet.cli.errors import UsageError
from cdgcnet.cli.launch import add_launch_arguments, launch_processes
from cdgcnet.cli.options import add_config_arguments, check_overrides
from cdgcnet.config.files import find_config

COMPETITIONS = ("comp5", "comp6")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", choices=("cityscapes", "voc"))
    add_config_arguments(parser, "config of the trained model", weights=True, required=False)
    parser.add_argument("--labels", type=Path, help="folder of predicted label maps; no prediction")
    parser.add_argument("--verify", type=Path, metavar="PACKAGE", help="only check this package")
    parser.add_argument("--output", type=Path, help="the package to write")
    parser.add_argument("--dataset", help="registered name; default: the benchmark's test set")
    parser.add_argument(
        "--competition", choices=COMPETITIONS, default="comp6", help="of VOC (comp5: VOC data only)"
    )
    add_launch_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """
    Raises:
        UsageError: for options that do not go together.
        FileExistsError, FileNotFoundError: for an --output, --labels or --verify that cannot be.
    """
    ways = {"--config-file": args.config_file, "--labels": args.labels, "--verify": args.verify}
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        raise UsageError(
            "give one of --config-file, --labels and --verify; found "
            + (" and ".join(given) or "none")
        )
    if bool(args.weights) != bool(args.config_file):
        raise UsageError("--config-file and --weights go together; one of them is missing")
    if args.opts and not args.config_file:
        raise UsageError(f"--opts {' '.join(args.opts)}: nothing is predicted; remove it")
    if args.verify:
        if not args.verify.is_file():
            raise FileNotFoundError(f"--verify {args.verify}: there is no such file")
        return
    if args.output is None:
        raise UsageError("--output is missing: the package to write")
    if args.output.exists():
        raise FileExistsError(f"{args.output} exists; choose another --output")
    if args.labels and not args.labels.is_dir():
        raise FileNotFoundError(f"--labels {args.labels}: there is no such folder")


def run(args: argparse.Namespace) -> int:
    check_overrides(args.opts)
    check_arguments(args)
    if args.config_file:
        args.config_file = str(find_config(args.config_file))

    from detectron2.data import DatasetCatalog

    from cdgcnet import register_all
    from cdgcnet.data.preflight import similar_datasets
    from cdgcnet.evaluation.submission import check_package_name, server_of, verify

    server = server_of(args.benchmark, args.competition)
    if args.output:
        check_package_name(server, args.output)
    if args.config_file:
        return launch_processes(predict_and_pack, args)
    register_all()
    dataset = args.dataset or server.dataset
    if dataset not in DatasetCatalog.list():
        raise ValueError(f"--dataset {dataset} is not registered. {similar_datasets(dataset)}")
    if args.labels:
        pack_labels(args, args.labels)
        return 0
    images = [d["file_name"] for d in DatasetCatalog.get(dataset)]
    reasons = verify(server, images, args.verify)
    for reason in reasons:
        print(f"{args.verify}: {reason}", file=sys.stderr)
    print(f"{args.verify}: {'refused' if reasons else f'{len(images)} label maps, as expected'}")
    return 1 if reasons else 0


def predict_and_pack(args: argparse.Namespace) -> None:
    """Predict this process's share of the test set; the main process packs all of it."""
    from detectron2.utils import comm

    from cdgcnet.engine.defaults import predict_test_set, setup
    from cdgcnet.evaluation.submission import server_of

    name = args.dataset or server_of(args.benchmark, args.competition).dataset
    overrides = {
        "MODEL.WEIGHTS": args.weights,
        "DATASETS.TEST": f"('{name}',)",
        "TEST.SAVE_LABELS": "True",
        "TEST.RESUME": "True",
        "TEST.ORACLE": "False",
        "TEST.PICTURES": "False",
    }
    opts = [*args.opts, *(word for pair in overrides.items() for word in pair)]
    start = argparse.Namespace(
        config_file=args.config_file, opts=opts, eval_only=True, resume=False
    )
    folder = predict_test_set(setup(start))
    if comm.is_main_process():
        pack_labels(args, folder)


def pack_labels(args: argparse.Namespace, folder: Path) -> None:
    """Pack the label maps in ``folder``."""
    from detectron2.data import DatasetCatalog

    from cdgcnet.evaluation.submission import pack, server_of
    from cdgcnet.evaluation.writers import label_paths

    server = server_of(args.benchmark, args.competition)
    images = [d["file_name"] for d in DatasetCatalog.get(args.dataset or server.dataset)]
    paths = label_paths(folder, images)
    pack(server, images, [paths[image] for image in images], args.output)
    print(f"{args.output}: {len(images)} label maps, verified")
