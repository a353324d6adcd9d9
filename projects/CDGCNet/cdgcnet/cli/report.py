"""Show one or more runs on a page: scores side by side, training curves, config differences.

    %(prog)s RUN [RUN2 ...] [--output PAGE.html]

RUN is the folder of a finished run, OUTPUT_DIR, which holds results.json. The page needs no other
file and no network. Every evaluation also writes a page of its own, with pictures, to
OUTPUT_DIR/inference/DATASET/report.html.
"""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: report.html in the first RUN"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")


def short_names(folders: list[Path]) -> list[str]:
    """The ends of the paths, as long as they must be to differ.

    Raises:
        ValueError: naming a folder that is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for i, part in enumerate(parts):
        if part in parts[:i]:
            raise ValueError(f"{folders[i]} is given twice; expected different runs")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def run(args: argparse.Namespace) -> None:
    output = args.output or args.runs[0] / "report.html"
    if output.is_dir():
        raise ValueError(f"--output {output}: it is a folder; expected the name of a file")
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output {output}: expected a name that ends with .html")
    if output.exists() and not args.overwrite:
        raise ValueError(f"{output} exists; choose another --output or add --overwrite")

    from cdgcnet.evaluation.html_report.page import write_comparison_page
    from cdgcnet.evaluation.html_report.run_data import read_run

    names = short_names(args.runs)
    runs = [read_run(folder, name) for folder, name in zip(args.runs, names, strict=True)]
    pages = {
        f"{name}, {page.parent.name}": os.path.relpath(page, output.parent)
        for folder, name in zip(args.runs, names, strict=True)
        for page in sorted(folder.glob("inference/*/report.html"))
        if not page.parent.suffix[1:].isdigit()  # kept from earlier evaluations
    }
    write_comparison_page(output, runs, pages)
    print(f"Report on {len(runs)} run{'s' * (len(runs) > 1)}: {output}")
