"""Import annotations of other tools as label PNGs and a class list for the own-data config.

    %(prog)s coco-json --annotations instances.json --images images/ --output my/train

The output folder gets labels/ (palette PNGs of class ids; 255 is ignored), classes.txt and
split.txt, and the entry for DATASETS.FOLDERS is printed. Names that are not a class stop the import
before anything is written; a mapping file resolves them. Labels that are already there are kept, so
the same command continues an interrupted import; with other options or annotations it stops.
"""

import argparse
import os
from pathlib import Path

from cdgcnet.cli.options import image_limit, integer_from

FORMATS = ("coco-json", "labelme", "cvat", "rgb", "cityscapes-json")
OVERLAPS = ("later", "earlier", "smaller", "larger")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="PATH",
        help="the file (coco-json, cvat) or the folder of files (labelme, rgb, cityscapes-json)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the images, searched with its subfolders",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder for the labels"
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes.txt (NAME or NAME R G B, one a line); default: the names in --annotations. "
        "Give the training set's for the validation set",
    )
    parser.add_argument(
        "--mapping", type=Path, metavar="FILE", help="lines NAME -> CLASS, (ignore) or (skip)"
    )
    parser.add_argument(
        "--unlabeled",
        metavar="CLASS",
        help="class of pixels outside all shapes, or (ignore); default: background, for "
        "cityscapes-json (ignore)",
    )
    parser.add_argument(
        "--overlaps",
        choices=OVERLAPS,
        help="which of two overlapping shapes shows; default: later, for coco-json smaller",
    )
    parser.add_argument(
        "--crowd",
        choices=("class", "ignore"),
        default="class",
        help="coco-json: what crowd regions become, below single objects (default: class)",
    )
    parser.add_argument("--image-suffix", metavar="END", help="as IMAGE_SUFFIX in the config")
    parser.add_argument("--annotation-suffix", metavar="END", help="as LABEL_SUFFIX in the config")
    parser.add_argument(
        "--workers",
        type=integer_from(0),
        default=os.cpu_count() or 1,
        help="processes (0: only this one)",
    )
    parser.add_argument("--overwrite", action="store_true", help="make existing labels again")
    parser.add_argument(
        "--opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="INPUT.MAX_PIXELS N, for images of more than 100 million pixels",
    )


def run(args: argparse.Namespace) -> int:
    args.max_pixels = image_limit(args.opts, "this command has no config; its only override is")
    try:
        from cdgcnet.data.prepare.annotations.importer import import_annotations
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this command needs the package {error.name}: pip install 'cdgcnet[data]'"
        ) from error
    return import_annotations(args)
