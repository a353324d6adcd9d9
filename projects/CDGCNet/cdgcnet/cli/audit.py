"""Check every image and label of a dataset, and report what is wrong.

    %(prog)s cdgc_voc_train_aug
    %(prog)s my_train --config-file my.yaml --html report.html

The exit code is 1 if the report names an error.
"""

import argparse
import os
from pathlib import Path

from cdgcnet.cli.options import integer_from
from cdgcnet.config.files import find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered dataset, e.g. cdgc_voc_train_aug")
    parser.add_argument(
        "--config-file", metavar="YAML", help="a config whose DATASETS.FOLDERS defines it"
    )
    parser.add_argument("--root", type=Path, help="data root; default: DETECTRON2_DATASETS")
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="NAME2",
        help="datasets that must share no image with it; default: val for train, and so on",
    )
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page with pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")
    parser.add_argument(
        "--workers", type=integer_from(1), default=os.cpu_count() or 1, help="threads"
    )


def run(args: argparse.Namespace) -> int:
    path = find_config(args.config_file) if args.config_file else None

    from cdgcnet import load_cfg, register_all, register_folders
    from cdgcnet.data.audit.audit import audit
    from cdgcnet.data.audit.issues import format_report
    from cdgcnet.data.audit.report import check_page, write_page
    from cdgcnet.data.decoding import MAX_PIXELS

    if args.html is not None:
        check_page(args.html, args.overwrite)
    register_all(args.root)
    max_pixels = MAX_PIXELS
    if path:
        cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu"])  # looking at data needs no GPU
        max_pixels = cfg.INPUT.MAX_PIXELS
        register_folders(cfg, args.root)
    report = audit(args.name, args.against, args.workers, max_pixels)
    print(format_report(report))
    if args.html is not None:
        write_page(report, args.html)
        print(f"page: {args.html}")
    return 1 if report.number(errors=True) else 0
