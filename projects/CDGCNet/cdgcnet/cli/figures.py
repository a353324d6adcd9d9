"""Draw the paper's Figs. 4 to 6 with a trained network and your own images.

    %(prog)s sampling   --config-file CONFIG --weights FILE --output fig4.pdf
    %(prog)s comparison --config-file CONFIG --weights FILE --output fig5.png \\
        --images 0016E5_07959 12
    %(prog)s features   --config-file CONFIG --weights FILE --output fig6.png \\
        --images street.jpg --classes car pedestrian

sampling: the easy and hard nodes that Eq. 4 selects for a class, on the image; a network trains
with them if MODEL.CDGC.NODES is dynamic. comparison: image, ground truth, coarse and refined
prediction, and what changed; --crops 4 enlarges the four regions that changed most. features: the
features of a class before and after the graph.

An image is named by its id in DATASETS.TEST, by its number there, or as a file, which has no ground
truth. The suffix of --output, .png, .pdf or .svg, chooses the format. An existing file is not
replaced.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdgcnet.cli.options import add_config_arguments, integer_from, load_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.data import Metadata

    from cdgcnet.engine.feature_extractor import FeatureExtractor
    from cdgcnet.visualization.paper_figures import Activations

FORMATS = (".png", ".pdf", ".svg")
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


def choose_images(cfg: "CfgNode", wanted: Sequence[str], count: int) -> list[dict]:
    """Detectron2 dicts of the images asked for, or of ``count`` spread evenly over the test set.

    Raises:
        ValueError: naming an image that is neither in the set nor a file.
    """
    from detectron2.data import DatasetCatalog

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


def choose_classes(names: Sequence[str], metadata: "Metadata") -> list[int]:
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
    seen: "Sequence[Activations]", labels: Sequence[int], extractor: "FeatureExtractor"
) -> "list[tuple[Activations, int]]":
    """Each image with each class; with the class that has most hard nodes if none is named."""
    from cdgcnet.visualization.paper_figures.activations import hardest_class

    if labels:
        return [(o, label) for o in seen for label in labels]
    sizes = extractor.num_classes, extractor.ignore_label
    return [(o, hardest_class(o, *sizes)) for o in seen]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("figure", choices=FIGURES)
    add_config_arguments(parser, "config of the trained model", weights=True)
    parser.add_argument("--output", type=Path, required=True, help="PNG, PDF or SVG to write")
    parser.add_argument("--images", nargs="+", default=[], help="ids, numbers or files")
    parser.add_argument(
        "--num", type=integer_from(1), default=3, help="number of images, if none is named"
    )
    parser.add_argument(
        "--crops",
        type=integer_from(0),
        default=0,
        help="comparison: enlarge this many regions with the most changes, at most one per image",
    )
    parser.add_argument("--classes", nargs="+", default=[], help="by name; default: the hardest")


def run(args: argparse.Namespace) -> None:
    check_output(args.output)
    cfg = load_config(args, ("MODEL.WEIGHTS", args.weights))
    rows = make_figure(args, cfg)
    print(f"{args.output}: {rows} {'row' if rows == 1 else 'rows'}")


def make_figure(args: argparse.Namespace, cfg: "CfgNode") -> int:
    """Draw the figure; returns its number of rows."""
    from detectron2.data import MetadataCatalog

    from cdgcnet.engine.feature_extractor import FeatureExtractor
    from cdgcnet.engine.subnormals import flush_subnormals
    from cdgcnet.visualization.paper_figures import draw_comparison, draw_features, draw_sampling

    flush_subnormals()
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
    extractor = FeatureExtractor(cfg)
    seen = [extractor(d) for d in dicts]
    if args.figure == "comparison":
        compared = [o.compared for o in seen]
        return draw_comparison(args.output, compared, metadata, extractor.ignore_label, args.crops)
    pairs = pair_up(seen, labels, extractor)
    if args.figure == "features":
        draw_features(args.output, pairs, metadata, extractor.ignore_label)
    else:
        ratio = cfg.MODEL.CDGC.EASY_RATIO
        draw_sampling(args.output, pairs, metadata, extractor.ignore_label, ratio)
    return len(pairs)
