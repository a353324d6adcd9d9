#!/usr/bin/env python
"""The paper's three recipes as they are trained: time per iteration, memory, GPU hours.

    python benchmarks/bench_recipe.py --weights resnet101.pth [--output benchmarks/results]

Each recipe trains for some hundred iterations with the product's own trainer, loader and losses on
generated images of the dataset's usual size, with one GPU's share of the batch. The hours of the
whole run are its iterations times the median time, on each GPU; the exchange of gradients between
GPUs is not in it. Unlike the other benchmarks this one reports times, so it needs a GPU that
nothing else uses; ``--device cpu`` with a small ``--crop`` only shows that it runs.
"""

import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from maps import blob_map
from PIL import Image
from protocol import ROOT, arguments, attempt, exit_code, mebibytes, save

from cdgcnet import Trainer, load_cfg
from cdgcnet.config.adaptation import adapt_cfg

# Config, images per GPU in the paper's setting, size of the dataset's images.
RECIPES = {
    "cityscapes": (
        "Cityscapes-SemanticSegmentation/cdgcnet_r101_os8_769_30k.yaml",
        2,
        (1024, 2048),
    ),
    "voc": ("VOC-SemanticSegmentation/cdgcnet_r101_os8_513_30k.yaml", 4, (375, 500)),
    "coco-stuff": (
        "COCOStuff10k-SemanticSegmentation/cdgcnet_r101_os8_520_60k.yaml",
        4,
        (480, 640),
    ),
}
IMAGES = 16
WARM_UP = 20  # iterations at most that are not timed


def generate(name: str, folder: Path, size: tuple[int, int], classes: int) -> None:
    """Register noisy images whose labels are blob maps with 12 of the classes."""
    dicts = []
    for i in range(IMAGES):
        nodes = blob_map(128, classes, seed=i).numpy().astype(np.uint8)
        labels = cv2.resize(nodes, size[::-1], interpolation=cv2.INTER_NEAREST)
        noise = np.random.default_rng(i).integers(0, 60, (*size, 3))
        image = (labels[:, :, None] * np.array([7, 3, 1]) % 190 + noise).astype(np.uint8)
        entry = {
            "file_name": folder / f"{name}_{i}.jpg",
            "sem_seg_file_name": folder / f"{name}_{i}.png",
        }
        Image.fromarray(image).save(entry["file_name"])
        Image.fromarray(labels).save(entry["sem_seg_file_name"])
        dicts.append({key: str(path) for key, path in entry.items()})
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        stuff_classes=[f"class {i}" for i in range(classes)], ignore_label=255
    )


def train(recipe: str, folder: Path, iterations: int, options: list[str]) -> dict[str, float]:
    """Train a recipe for some iterations.

    Returns:
        "seconds" per iteration and "loading" of them, medians after the warm-up; "bytes" at the
        peak of the GPU's memory; "hours" of the whole run on one of its GPUs; "images".
    """
    file, per_gpu, size = RECIPES[recipe]
    cfg = load_cfg(str(ROOT / "configs" / file), options)
    whole = cfg.SOLVER.MAX_ITER
    name = f"bench_recipe_{recipe}"
    generate(name, folder, size, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.SOLVER.IMS_PER_BATCH = per_gpu
    warm_up = max(4, min(WARM_UP, iterations))  # Detectron2 times none of the first three
    cfg.SOLVER.MAX_ITER = warm_up + iterations
    cfg.TEST.EVAL_PERIOD = 0
    cfg.OUTPUT_DIR = str(folder / recipe)
    Path(cfg.OUTPUT_DIR).mkdir()
    adapt_cfg(cfg)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    history = trainer.storage.histories()

    def median(key: str) -> float:
        return statistics.median(v for v, i in history[key].values() if i >= warm_up)

    seconds = median("time")
    return {
        "seconds": seconds,
        "loading": median("data_time"),
        "bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "hours": whole * seconds / 3600,
        "images": per_gpu,
    }


def row(
    recipe: str, folder: Path, iterations: int, options: list[str], crop: int | None
) -> list[list[str]]:
    """The one row of a recipe."""
    found = train(recipe, folder, iterations, options)
    return [
        [
            recipe + (f" at {crop}²" if crop else ""),
            str(found["images"]),
            f"{found['seconds']:.3f}",
            f"{found['loading'] / found['seconds']:.1%}",
            f"{found['images'] / found['seconds']:.1f}",
            mebibytes(int(found["bytes"])) if found["bytes"] else "",
            "" if crop else f"{found['hours']:.1f}",
        ]
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--weights", default="", help="ImageNet ResNet-101; time needs none")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--iterations", type=int, default=200, help="timed ones")
    parser.add_argument("--amp", action="store_true", help="SOLVER.AMP.ENABLED")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--crop", type=int, help="another crop size; not the recipe any more")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "bench_recipe.py: error: this machine has no CUDA device (--device cpu only tries)"
        )
    if args.iterations < 1:
        sys.exit(f"bench_recipe.py: error: --iterations {args.iterations}; expected 1 or more")
    options = ["MODEL.DEVICE", args.device, "SOLVER.AMP.ENABLED", str(args.amp)]
    options += ["MODEL.WEIGHTS", args.weights]
    if args.crop:
        options += ["INPUT.CROP.SIZE", f"[{args.crop}, {args.crop}]"]
    header = ["recipe", "images per GPU", "s/iter", "of it waiting for data", "images/s"]
    header += ["peak GPU memory", "hours of the whole run, per GPU"]
    precision = "AMP" if args.amp else "fp32"
    rows: list[list[str]] = []
    text = ""
    with tempfile.TemporaryDirectory() as folder:
        for recipe in args.recipes:
            part = partial(row, recipe, Path(folder), args.iterations, options, args.crop)
            rows += attempt(recipe, part)
            text = save(  # after each recipe, for runs that are cut off
                f"bench_recipe_{precision.lower()}",
                f"The paper's recipes, a GPU's share, {precision}, medians of {args.iterations} "
                "iterations",
                header,
                rows,
                args.output,
            )
    print(text)
    sys.exit(exit_code())


if __name__ == "__main__":
    main()
