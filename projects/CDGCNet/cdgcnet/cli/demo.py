"""Train and evaluate a tiny network on generated street scenes, in minutes on two CPU cores.

    %(prog)s [--output FOLDER] [--quick]

Draws the scenes once, trains CDGCNet and the same network without the graph, evaluates both, with
test-time augmentation too, and writes a picture of predictions. --quick does the same with a few
images and iterations to check the installation; its scores mean nothing.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("output/demo"), help="default: %(default)s"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(".cache/datasets"),
        help="where the scenes are drawn; default: %(default)s",
    )
    parser.add_argument("--quick", action="store_true", help="a few iterations on a few images")


def run(args: argparse.Namespace) -> None:
    output = free_folder(args.output)

    from cdgcnet.engine.demo import run_demo
    from cdgcnet.engine.subnormals import flush_subnormals

    flush_subnormals()
    run_demo(output, args.data, args.quick)


def free_folder(folder: Path) -> Path:
    """``folder``, or ``folder-2``, ``folder-3`` … if it holds an earlier demo."""
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file; expected a folder")
    number, candidate = 2, folder
    while candidate.exists() and any(candidate.iterdir()):
        candidate = folder.with_name(f"{folder.name}-{number}")
        number += 1
    return candidate
