"""The demo: draws street scenes, trains two small networks on them, and compares their scores."""

import logging
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer
from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.files import config_path
from cdgcnet.data.datasets import register_all
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_labels
from cdgcnet.engine.trainer import Trainer
from cdgcnet.evaluation.report import format_table, write_results
from cdgcnet.evaluation.testing import evaluate
from cdgcnet.modeling.meta_arch import CDGCSegmentor
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA
from cdgcnet.visualization.colors import class_colors, color_map
from cdgcnet.visualization.grid import PanelGrid, class_legend

VAL = "cdgc_streets_val"
COLUMNS = {
    "no_graph": "no graph",
    "sem_seg_coarse": "coarse",
    "sem_seg": "refined",
    "sem_seg_TTA": "refined+TTA",
}


class ProgressBar(HookBase):
    """One bar for a training run, with its loss and the time left."""

    def __init__(self, title: str, position: int):
        self.title = title
        self.position = position

    def before_train(self) -> None:
        self.bar = tqdm(
            total=self.trainer.max_iter, desc=self.title, unit="it", position=self.position
        )

    def after_step(self) -> None:
        loss = self.trainer.storage.latest()["total_loss"][0]
        self.bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
        self.bar.update()

    def after_train(self) -> None:
        self.bar.close()


class FirstImages:
    """A loader cut to its first images, with a length for the progress bar."""

    def __init__(self, loader: Iterable, count: int):
        self.loader = loader
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        yield from (batch for _, batch in zip(range(self.count), self.loader, strict=False))


def log_to_file(folder: Path) -> None:
    """Log everything to ``folder``/log.txt; the terminal shows only warnings and the bars."""
    for name in ("detectron2", "fvcore", "cdgcnet", "cdgc"):
        for handler in setup_logger(str(folder), name=name).handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.WARNING)


def config_of(name: str, folder: Path, quick: bool) -> CfgNode:
    """A config of the street scenes that writes to ``folder``."""
    overrides = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", "from_scratch"]
    if quick:
        overrides += ["SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "2"]
    return load_cfg(config_path(f"Streets-SemanticSegmentation/{name}.yaml"), overrides)


def train(cfg: CfgNode, data: Path, title: str, position: int) -> None:
    """Train one network, in a process of its own."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    log_to_file(folder)
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    register_all(data)
    seed_all_rng(cfg.SEED)
    cfg.DATASETS.TEST = ()  # the demo evaluates by itself, with a bar
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.register_hooks([ProgressBar(title, position)])
    trainer.train()


def train_all(cfgs: dict[str, CfgNode], data: Path) -> None:
    """Train the networks side by side: two processes of one thread use two cores best.

    Raises:
        ChildProcessError: naming the log of a training that failed.
    """
    context = multiprocessing.get_context("spawn")
    workers = {
        title: context.Process(target=train, args=(cfg, data, f"training {title}", position))
        for position, (title, cfg) in enumerate(cfgs.items())
    }
    for worker in workers.values():
        worker.start()
    for worker in workers.values():
        worker.join()
    print("\n" * len(workers), end="", file=sys.stderr)  # keep the finished bars visible
    for title, worker in workers.items():
        if worker.exitcode:
            log = Path(cfgs[title].OUTPUT_DIR) / "log.txt"
            raise ChildProcessError(
                f"training {title} failed (exit code {worker.exitcode}); see {log}"
            )


def load_trained(cfg: CfgNode) -> CDGCSegmentor:
    model = build_model(cfg)
    StrictCheckpointer(model).load(str(Path(cfg.OUTPUT_DIR) / "model_final.pth"))
    return model


def score(cfg: CfgNode, model: torch.nn.Module, title: str, images: int) -> dict:
    loader = FirstImages(Trainer.build_test_loader(cfg, VAL), images)
    return evaluate(cfg, model, tqdm(loader, desc=title, unit="image"), VAL)


@torch.no_grad()
def draw(segmentor: CDGCSegmentor, cfg: CfgNode, path: Path, images: int) -> None:
    """A sheet of image, ground truth, coarse and refined prediction."""
    segmentor.eval()
    metadata = MetadataCatalog.get(VAL)
    rows = []
    for sample in DatasetCatalog.get(VAL)[:images]:
        image = read_image(sample["file_name"], cfg.INPUT.FORMAT)
        chw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        labels = segmentor.predict_labels([{"image": chw}])[0].labels
        truth = read_labels(sample["sem_seg_file_name"])
        predictions = [
            labels[kind].cpu().numpy() for kind in (PredictionKind.COARSE, PredictionKind.REFINED)
        ]
        # Pixels without ground truth are not drawn in the predictions either.
        rows.append((image, truth, *(np.where(truth == 255, 255, p) for p in predictions)))
    occurring = sorted({int(label) for _, *maps in rows for x in maps for label in np.unique(x)})
    height, width = rows[0][0].shape[:2]
    titles = ("image", "ground truth", "coarse", "refined by the graph")
    legend = class_legend(occurring, metadata, 255)
    grid = PanelGrid(len(rows), len(titles), height / width, legend=legend)
    for i, (image, *maps) in enumerate(rows):
        pictures = [image, *(color_map(x, class_colors(metadata)) for x in maps)]
        for j, picture in enumerate(pictures):
            grid.show(i, j, picture, titles[j] if i == 0 else "")
    grid.save(path)


def run_demo(output: Path, data: Path, quick: bool = False) -> None:
    """Run the demo and print its scores and the files it wrote.

    Args:
        output: an empty folder; made if it is not there.
        data: root below which the scenes are drawn once.
        quick: a few iterations on a few images.
    """
    start = time.time()
    images = 2 if quick else None
    output.mkdir(parents=True, exist_ok=True)
    log_to_file(output)
    register_all(data)
    count = images or len(DatasetCatalog.get(VAL))  # draws the scenes on the first run
    cfgs = {
        "no graph": config_of("plain_r18_cpu", output / "no_graph", quick),
        "CDGCNet": config_of("cdgcnet_r18_cpu", output / "cdgcnet", quick),
    }
    train_all(cfgs, data)
    plain = load_trained(cfgs["no graph"])
    model = load_trained(cfgs["CDGCNet"])
    cfg = cfgs["CDGCNet"]
    results = {"no_graph": score(cfg, plain, "evaluating no graph", count)["sem_seg"]}
    results.update(score(cfg, model, "evaluating CDGCNet", count))
    with_tta = SemanticSegmentorWithTTA(cfg, model)
    results["sem_seg_TTA"] = score(cfg, with_tta, "evaluating with TTA", count)["sem_seg"]
    write_results(output / "results.json", results)
    sheet = output / "predictions.png"
    draw(model, cfg, sheet, min(count, 6))

    scales = ", ".join(str(s) for s in cfg.TEST.AUG.SCALES)
    print(f"\nIoU in percent on {count} validation scenes (TTA: scales {scales}, and flip)")
    print(format_table(results, COLUMNS))
    print(f"\ntook {(time.time() - start) / 60:.1f} minutes")
    print(f"scenes    {data / 'cdgc_streets'}")
    print(f"pictures  {sheet}")
    print(f"results   {output / 'results.json'}")
    print(f"weights   {output / 'cdgcnet' / 'model_final.pth'}")
    print(f"logs      {output / 'log.txt'}")
