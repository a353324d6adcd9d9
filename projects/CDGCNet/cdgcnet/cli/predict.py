"""Predict label maps and overlays for image files.

    %(prog)s --config-file CONFIG --weights FILE --input PATH … --output DIR

PATH is an image or a folder of images. For each image NAME.* the output folder gets NAME.png, a
palette PNG whose values are the class ids, and NAME_overlay.jpg. An image that cannot be read is
reported, and the others are still predicted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdgcnet.cli.options import add_config_arguments, load_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.data.catalog import Metadata

    from cdgcnet import Predictor


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Files as given, and the images directly inside folders, sorted.

    Raises:
        FileNotFoundError, ValueError: for a path that is not there, a folder without images, or
            two images whose predictions would share a name.
    """
    from cdgcnet.data.decoding import IMAGE_SUFFIXES
    from cdgcnet.data.image_folder import images_in

    images: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = images_in(path)
            if not inside:
                raise ValueError(
                    f"--input {path}: the folder holds no image ({', '.join(IMAGE_SUFFIXES)})"
                )
            images += inside
        elif path.is_file():
            images.append(path)
        else:
            raise FileNotFoundError(f"--input {path}: there is no such file or folder")
    by_stem: dict[str, Path] = {}
    for image in images:
        other = by_stem.setdefault(image.stem, image)
        if other != image:
            raise ValueError(
                f"{other} and {image} would both be written to {image.stem}.png; "
                "predict them into different folders"
            )
    return list(by_stem.values())


def check_output(images: Sequence[Path], output: Path, overwrite: bool) -> None:
    """Refuse to overwrite earlier predictions, or the input itself.

    Raises:
        ValueError: naming the first file in the way.
    """
    targets = [output / f"{i.stem}{end}" for i in images for end in (".png", "_overlay.jpg")]
    inputs = {os.path.realpath(i) for i in images}  # unlike resolve, it accepts a loop of links
    for target in targets:
        if os.path.realpath(target) in inputs:
            raise ValueError(f"--output {output}: {target} is one of the input images")
        if target.exists() and not overwrite:
            raise ValueError(f"{target} exists; choose another --output or add --overwrite")


def predict(
    predictor: "Predictor", images: Sequence[Path], output: Path, metadata: "Metadata"
) -> list[str]:
    """Predict all images; returns one message per image that failed."""
    from PIL import Image
    from tqdm import tqdm

    from cdgcnet.data.image_io import read_image
    from cdgcnet.visualization.colors import label_image, overlay

    failures = []
    for path in tqdm(images, desc="predicting", unit="image"):
        try:
            bgr = read_image(path, "BGR", predictor.cfg.INPUT.MAX_PIXELS)
            labels = predictor.labels(bgr)
            label_image(labels, metadata.stuff_colors).save(output / f"{path.stem}.png")
            drawn = overlay(bgr[:, :, ::-1], labels, metadata)
            Image.fromarray(drawn).save(output / f"{path.stem}_overlay.jpg")
        except (ValueError, OSError, MemoryError) as error:
            failures.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return failures


def dataset_metadata(cfg: "CfgNode") -> "Metadata":
    """Class names and colors of the test set, for a model that does not carry its own.

    Raises:
        FileNotFoundError, ValueError: naming the dataset and what is wrong with it.
    """
    from detectron2.data import MetadataCatalog

    from cdgcnet import register_all, register_folders
    from cdgcnet.data.preflight import check_datasets

    register_all()
    register_folders(cfg)
    check_datasets(cfg, train=False)
    return MetadataCatalog.get(cfg.DATASETS.TEST[0])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "config of the trained model", weights=True)
    parser.add_argument("--input", nargs="+", type=Path, required=True, help="images or folders")
    parser.add_argument("--output", type=Path, required=True, help="folder for the predictions")
    parser.add_argument("--tta", action="store_true", help="multi-scale and flip, as in TEST.AUG")
    parser.add_argument("--overwrite", action="store_true", help="replace earlier predictions")


def run(args: argparse.Namespace) -> int:
    images = find_images(args.input)
    check_output(images, args.output, args.overwrite)
    cfg = load_config(args, ("MODEL.WEIGHTS", args.weights), datasets=False)

    from cdgcnet import Predictor

    predictor = Predictor(cfg, tta=args.tta)
    metadata = predictor.metadata or dataset_metadata(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    failures = predict(predictor, images, args.output, metadata)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(f"{len(images) - len(failures)} of {len(images)} images predicted into {args.output}")
    return 1 if failures else 0
