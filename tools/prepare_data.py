#!/usr/bin/env python
"""Bring official downloads into the layout that CDGCNet reads; check datasets.

    python tools/prepare_data.py voc-aug --src ~/Downloads --root $DETECTRON2_DATASETS

--src holds the official archives as downloaded, or unpacked folders, at any depth; it is not
changed. Files that are already in --root are trusted and skipped, so an interrupted run goes on
where it was. At the end the counts are checked against the official ones; exit code 1 says that
something is missing or failed. What to download: docs/data.md.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cdgcnet.data.prepare.archives import find
from cdgcnet.data.prepare.completeness import count
from cdgcnet.data.prepare.conversion import Runner

COMMANDS = {
    "cityscapes": "cityscapes",
    "voc-aug": "voc",
    "coco-stuff-10k": "coco_stuff",
    "camvid": "camvid",
    "pascal-context": "pascal_context",
}


def prepare(args: argparse.Namespace) -> int:
    """Prepare one dataset; returns the exit code.

    Raises:
        ValueError, OSError: for sources without the dataset, or a root that cannot be written.
    """
    try:
        module = importlib.import_module(f"cdgcnet.data.prepare.{COMMANDS[args.command]}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this command needs the package {error.name}: pip install 'cdgcnet[data]'"
        ) from error
    folder = args.root / module.FOLDER
    runner = Runner(args.workers, args.overwrite)
    # What earlier runs brought is a source too.
    sources = find(
        [*args.src, *([folder] if folder.is_dir() else [])], module.WANTED, module.OFFICIAL
    )
    try:
        splits = module.prepare(sources, args.root, runner)
    finally:
        sources.close()
        print(f"{folder}: {runner.made} files made, {runner.kept} were there")
        # What is wrong in --src matters if something is missing in the end: it need not be ours.
        for problem in sources.problems:
            print(f"note: {problem}", file=sys.stderr)
        for problem in runner.failures:
            print(f"failed: {problem}", file=sys.stderr)
    table, missing = count(splits)
    print(table)
    for problem in missing:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if missing or runner.failures else 0


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = commands.add_parser(name, help=f"prepare {name}")
        command.add_argument(
            "--src", nargs="+", type=Path, required=True, metavar="DIR", help="downloads"
        )
        command.add_argument(
            "--root", type=Path, required=True, help="data root, DETECTRON2_DATASETS"
        )
        command.add_argument(
            "--workers", type=int, default=os.cpu_count() or 1, help="processes (0: this one)"
        )
        command.add_argument("--overwrite", action="store_true", help="make existing files again")
        command.set_defaults(run=prepare)
    audit = commands.add_parser("audit", help="check every file of a prepared dataset")
    if argv[:1] == ["audit"]:
        module = importlib.import_module("cdgcnet.data.audit.audit")
        module.add_arguments(audit)
        audit.set_defaults(run=module.main)
    args = parser.parse_args(argv)
    if getattr(args, "workers", 0) < 0:
        parser.error(f"--workers {args.workers}: expected 0 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(sys.argv[1:] if argv is None else list(argv))
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"prepare_data.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    # Detectron2's imports warn; once is enough, and there is a worker process per processor.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    sys.exit(main())
