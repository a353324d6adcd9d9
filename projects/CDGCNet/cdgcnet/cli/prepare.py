"""Convert official downloads to the layout that CDGCNet reads, or import your own annotations.

    %(prog)s voc-aug --src ~/Downloads --root $DETECTRON2_DATASETS
    %(prog)s import coco-json --annotations FILE --images DIR --output DIR

--src holds the official archives as downloaded, or unpacked folders, at any depth; it is not
changed. Files that are already in --root are trusted and skipped, so the same command continues an
interrupted run. At the end the numbers of files are compared with the official ones; exit code
1 means that something is missing or failed. docs/data.md says what to download.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

from cdgcnet.cli import prepare_import
from cdgcnet.cli.options import integer_from

DATASETS = {
    "cityscapes": "cityscapes",
    "voc-aug": "voc",
    "voc-animals": "voc_animals",
    "coco-stuff-10k": "coco_stuff",
    "camvid": "camvid",
    "pascal-context": "pascal_context",
}


def run(args: argparse.Namespace) -> int:
    """Prepare one dataset; the exit code is 1 if something is missing or failed.

    Raises:
        ValueError, OSError: for sources without the dataset, or a root that cannot be written.
    """
    if args.dataset == "import":
        return prepare_import.run(args)

    from cdgcnet.data.prepare.archives import find
    from cdgcnet.data.prepare.completeness import count
    from cdgcnet.data.prepare.conversion import Runner

    try:
        module = importlib.import_module(f"cdgcnet.data.prepare.{DATASETS[args.dataset]}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this command needs the package {error.name}: pip install 'cdgcnet[data]'"
        ) from error
    folder = args.root / module.FOLDER
    runner = Runner(args.workers, args.overwrite)
    # What earlier runs have written is a source too.
    sources = find(
        [*args.src, *([folder] if folder.is_dir() else [])], module.WANTED, module.OFFICIAL
    )
    try:
        splits = module.prepare(sources, args.root, runner)
    finally:
        sources.close()
        print(f"{folder}: {runner.made} files made, {runner.kept} were there")
        # A problem in --src matters only if something is missing in the end: the file may be
        # no part of the dataset.
        for problem in sources.problems:
            print(f"note: {problem}", file=sys.stderr)
        for problem in runner.failures:
            print(f"failed: {problem}", file=sys.stderr)
    table, missing = count(splits)
    print(table)
    for problem in missing:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if missing or runner.failures else 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name in DATASETS:
        dataset = commands.add_parser(name, help=f"prepare {name}")
        dataset.add_argument(
            "--src", nargs="+", type=Path, required=True, metavar="DIR", help="downloads"
        )
        dataset.add_argument(
            "--root", type=Path, required=True, help="data root, DETECTRON2_DATASETS"
        )
        dataset.add_argument(
            "--workers",
            type=integer_from(0),
            default=os.cpu_count() or 1,
            help="processes (0: only this one)",
        )
        dataset.add_argument("--overwrite", action="store_true", help="make existing files again")
    assert prepare_import.__doc__
    importer = commands.add_parser(
        "import",
        help=prepare_import.__doc__.splitlines()[0],
        description=prepare_import.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prepare_import.add_arguments(importer)
