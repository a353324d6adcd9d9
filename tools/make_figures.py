#!/usr/bin/env python
"""The paper's Figs. 4 to 6 with a trained network and images of one's own.

    python tools/make_figures.py sampling   --config-file CONFIG --weights FILE --output fig4.pdf
    python tools/make_figures.py comparison --config-file CONFIG --weights FILE --output fig5.png \\
        --images 0016E5_07959 12
    python tools/make_figures.py features   --config-file CONFIG --weights FILE --output fig6.png \\
        --images street.jpg --classes car pedestrian

sampling: the easy and hard nodes of a class on the image. comparison: image, ground truth, coarse
and refined prediction, marked differences. features: a class's features before and after the graph.

An image is one of DATASETS.TEST by its id or its number there, or a file, which has no ground
truth. The suffix of the output, .png, .pdf or .svg, chooses the format. An existing file is not
replaced.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from cdgcnet import load_cfg, register_all, register_folders
from cdgcnet.data.datasets.check import check_datasets
from cdgcnet.visualization.paper_figures import (
    Observation,
    Observer,
    draw_comparison,
    draw_features,
    draw_sampling,
)
from cdgcnet.visualization.paper_figures.canvas import FORMATS
from cdgcnet.visualization.paper_figures.observe import hardest_class

FIGURES = ("sampling", "comparison", "features")


def check_output(path: Path) -> None:
    """
    Raises:
        ValueError, FileExistsError, FileNotFoundError: naming the path.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"--output {path}: expected a name that ends with {', '.join(FORMATS)}")
    if path.exists():
        raise FileExistsError(f"--output {path} exists; choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}")


def choose_images(cfg: CfgNode, wanted: Sequence[str], count: int) -> list[dict]:
    """Detectron2 dicts of the images asked for, or of ``count`` spread evenly over the test set.

    Raises:
        ValueError: naming an image that is neither in the set nor a file.
    """
    if wanted and all(Path(name).is_file() for name in wanted):
        return [{"file_name": name} for name in wanted]
    name = cfg.DATASETS.TEST[0]
    dicts = DatasetCatalog.get(name)
    if not wanted:
        count = min(count, len(dicts))
        return [dicts[(2 * i + 1) * len(dicts) // (2 * count)] for i in range(count)]
    by_id = {d.get("image_id", Path(d["file_name"]).stem): d for d in dicts}
    chosen = []
    for word in wanted:
        if word in by_id:
            chosen.append(by_id[word])
        elif word.isdigit() and int(word) < len(dicts):
            chosen.append(dicts[int(word)])
        elif Path(word).is_file():
            raise ValueError(
                f"--images {word}: files without ground truth and images of {name} cannot share a "
                "figure"
            )
        else:
            raise ValueError(
                f"--images {word}: neither a file nor one of the {len(dicts)} images of {name} "
                f"(ids like {next(iter(by_id))}, or numbers from 0)"
            )
    return chosen


def choose_classes(names: Sequence[str], metadata: Metadata) -> list[int]:
    """
    Raises:
        ValueError: naming a class that the dataset has not.
    """
    known = list(metadata.stuff_classes)
    for name in names:
        if name not in known:
            raise ValueError(f"--classes {name}: no such class; there are {', '.join(known)}")
    return [known.index(name) for name in names]


def pair_up(
    seen: Sequence[Observation], labels: Sequence[int], observer: Observer
) -> list[tuple[Observation, int]]:
    """Each image with each class; with the class that has most hard nodes if none is named."""
    if labels:
        return [(o, label) for o in seen for label in labels]
    sizes = observer.num_classes, observer.ignore_label
    return [(o, hardest_class(o, *sizes)) for o in seen]


def make_figure(args: argparse.Namespace) -> int:
    """Draw; returns the number of rows."""
    check_output(args.output)
    cfg = load_cfg(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
    register_all()
    register_folders(cfg)
    check_datasets(cfg, train=False)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    labels = choose_classes(args.classes, metadata)
    dicts = choose_images(cfg, args.images, args.num)
    unlabeled = next((d["file_name"] for d in dicts if "sem_seg_file_name" not in d), None)
    if args.figure == "sampling" and unlabeled:
        raise ValueError(
            f"{unlabeled}: which nodes are hard needs ground truth; use an image of DATASETS.TEST"
        )
    if args.figure == "features" and unlabeled and not labels:
        raise ValueError(f"{unlabeled} has no ground truth; name the class with --classes")
    observer = Observer(cfg)
    seen = [observer(d) for d in dicts]
    if args.figure == "comparison":
        draw_comparison(args.output, seen, metadata, observer.ignore_label)
        return len(seen)
    pairs = pair_up(seen, labels, observer)
    if args.figure == "features":
        draw_features(args.output, pairs, metadata, observer.ignore_label)
    else:
        ratio = cfg.MODEL.CDGC.EASY_RATIO
        draw_sampling(args.output, pairs, metadata, observer.ignore_label, ratio)
    return len(pairs)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--config-file", required=True, help="YAML of the trained model")
    parser.add_argument("--weights", required=True, help="its checkpoint, e.g. model_final.pth")
    parser.add_argument("--output", type=Path, required=True, help="PNG, PDF or SVG to write")
    parser.add_argument("--images", nargs="+", default=[], help="ids, numbers or files")
    parser.add_argument("--num", type=int, default=3, help="images, where none is named")
    parser.add_argument("--classes", nargs="+", default=[], help="by name; default: the hardest")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    try:
        if args.num < 1:
            raise ValueError(f"--num is {args.num}; expected 1 or more")
        rows = make_figure(args)
    except (ValueError, OSError) as error:
        parser.exit(1, f"make_figures.py: error: {error}\n")
    print(f"{rows} rows: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
