#!/usr/bin/env python
"""Show what training sees: augmented images, their labels, and both together.

    python tools/visualize_data.py --config-file CONFIG --output GRID.png

The samples are the first of a training with this config, drawn with its SEED. Ignored pixels are
striped; the legend lists the classes that occur.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from cdgcnet import load_cfg, register_all
from cdgcnet.data.audit.audit import ON_CPU
from cdgcnet.data.audit.report import color_labels
from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.datasets.check import check_datasets
from cdgcnet.data.datasets.custom import register_folders
from cdgcnet.engine.trainer import Trainer
from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import class_colors

MAX_SAMPLES = 64
MAX_COLUMNS = 8
MAX_LEGEND = 24
_CELL = 2.8  # inches


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what can be known to be wrong before data is read.

    Raises:
        ValueError: naming the argument.
    """
    if not 1 <= args.num <= MAX_SAMPLES:
        raise ValueError(f"--num {args.num}: expected 1 to {MAX_SAMPLES}")
    if args.columns is not None and not 1 <= args.columns <= MAX_COLUMNS:
        raise ValueError(f"--columns {args.columns}: expected 1 to {MAX_COLUMNS}")
    if args.seed is not None and args.seed < 0:
        raise ValueError(f"--seed {args.seed}: expected 0 or more")
    if args.output.suffix.lower() != ".png":
        raise ValueError(f"--output {args.output}: expected a name that ends with .png")
    if args.output.is_dir():
        raise ValueError(f"--output {args.output}: it is a folder; expected the name of a file")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; choose another --output or add --overwrite")


def draw_samples(cfg: CfgNode, num: int, augmented: bool) -> list[dict]:
    """The first samples of a training with this config, as the training loader delivers them.

    Args:
        cfg: with cfg.SEED >= 0.
        num: how many.
        augmented: with the augmentation; otherwise the same files as they are.

    Raises:
        ValueError, OSError: for data that is not there or not sound.
    """
    cfg = cfg.clone()
    # Neither changes a sample: a batch depends on the seed and its number alone.
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.CACHE = ""
    loader = Trainer.build_train_loader(cfg)
    loader.seed = cfg.SEED
    if not augmented:
        loader.mapper = SemSegMapper(cfg, is_train=True, augmentations=[])
    return list(islice(chain.from_iterable(loader), num))


def draw_grid(
    samples: Sequence[dict],
    image_format: str,
    metadata: Metadata,
    title: str,
    path: Path,
    columns: int | None = None,
) -> None:
    """Image, labels and overlay of each sample, with a legend.

    Args:
        samples: dicts with "file_name", "image" (3, H, W) uint8 and "sem_seg" (H, W).
        image_format: "RGB" or "BGR".
        metadata: gives class names and colors.
        title: of the whole picture.
        path: PNG to write.
        columns: samples in a row; None: 1 for up to 3 samples, 2 for more.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors, names = class_colors(metadata), list(metadata.stuff_classes)
    across = min(columns or (1 if len(samples) < 4 else 2), len(samples))
    rows = -(-len(samples) // across)
    aspect = max(s["image"].shape[1] / s["image"].shape[2] for s in samples)
    pixels = np.zeros(256, np.int64)
    for sample in samples:
        pixels += np.bincount(sample["sem_seg"].numpy().ravel(), minlength=256)
    order = np.argsort(-pixels[: len(names)], kind="stable")
    occurring = [int(c) for c in order if pixels[c]]
    handles = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colors[c]), edgecolor="gray", label=names[c])
        for c in occurring[:MAX_LEGEND]
    ]
    if len(occurring) > MAX_LEGEND:
        handles.append(Patch(alpha=0, label=f"+{len(occurring) - MAX_LEGEND} more"))
    if pixels[len(names) :].any():
        handles.append(Patch(facecolor="white", edgecolor="dimgrey", hatch="////", label="ignored"))
    legend_columns = min(len(handles), 4 * across)
    legend_height = 0.25 * -(-len(handles) // legend_columns)
    figure = Figure(
        figsize=(3 * across * _CELL, rows * (_CELL * aspect + 0.25) + legend_height + 0.5),
        layout="constrained",
        dpi=110,
    )
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(rows, 3 * across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, sample in enumerate(samples):
        row, column = divmod(i, across)
        image = sample["image"].numpy().transpose(1, 2, 0)
        rgb = np.ascontiguousarray(image[:, :, ::-1] if image_format == "BGR" else image)
        labels = sample["sem_seg"].numpy().astype(np.uint8)
        colored = color_labels(labels, colors)
        overlay = cv2.addWeighted(rgb, 0.45, colored, 0.55, 0)
        for offset, picture in enumerate((rgb, colored, overlay)):
            axes[row, 3 * column + offset].imshow(picture, interpolation="nearest")
        ignored = 100 * (labels >= len(names)).mean()
        axes[row, 3 * column].set_title(
            f"{Path(sample['file_name']).name}, {ignored:.1f} % ignored",
            loc="left",
            fontsize=8,
            parse_math=False,  # names may hold "$"
        )
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns,
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="YAML of the training")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--dataset", help="another set than DATASETS.TRAIN")
    parser.add_argument("--num", type=int, default=8, help=f"samples, at most {MAX_SAMPLES}")
    parser.add_argument("--columns", type=int, help=f"samples in a row, at most {MAX_COLUMNS}")
    parser.add_argument("--seed", type=int, help="instead of the config's SEED")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing picture")
    parser.add_argument(
        "--no-augmentation", action="store_true", help="the same files, whole and unchanged"
    )
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="overrides")
    args = parser.parse_args(argv)
    try:
        check_arguments(args)
        cfg = load_cfg(args.config_file, [*args.opts, *ON_CPU])
        register_all()
        register_folders(cfg)
        if args.dataset:
            cfg.DATASETS.TRAIN = (args.dataset,)
        check_datasets(cfg, train=True)
        if args.seed is not None:
            cfg.SEED = args.seed
        if cfg.SEED < 0:
            print("SEED is -1, a training would draw its own; shown with SEED 0")
            cfg.SEED = 0
        samples = draw_samples(cfg, args.num, augmented=not args.no_augmentation)
        shown = "without augmentation" if args.no_augmentation else "as training sees it"
        draw_grid(
            samples,
            cfg.INPUT.FORMAT,
            MetadataCatalog.get(cfg.DATASETS.TRAIN[0]),
            f"{' + '.join(cfg.DATASETS.TRAIN)}, SEED {cfg.SEED}, {shown}",
            args.output,
            args.columns,
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"visualize_data.py: error: {error}\n")
    print(f"{len(samples)} samples: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
