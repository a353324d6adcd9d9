"""The demo: draws street scenes, trains two small networks on them, and compares their scores."""

import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.files import config_path
from cdgcnet.data.datasets import register_all, streets
from cdgcnet.data.synthetic.writer import write_street_scenes
from cdgcnet.engine.feature_extractor import FeatureExtractor
from cdgcnet.engine.predictor import Predictor
from cdgcnet.engine.subnormals import flush_subnormals
from cdgcnet.engine.trainer import Trainer
from cdgcnet.evaluation.report import format_table, write_results
from cdgcnet.evaluation.testing import evaluate
from cdgcnet.utils.progress import progress
from cdgcnet.utils.worker import WorkerPool, start_worker
from cdgcnet.visualization.paper_figures import draw_comparison

VAL = "cdgc_streets_val"
COLUMNS = {
    "no_graph": "no graph",
    "sem_seg_coarse": "coarse",
    "sem_seg": "refined",
    "sem_seg_TTA": "refined+TTA",
}

WHOLE_IMAGES, CROPS = 3, 5  # rows of the pictures


class ProgressBar(HookBase):
    """One bar for a training run, with its loss and the time left."""

    def __init__(self, title: str, position: int):
        self.title = title
        self.position = position

    def before_train(self) -> None:
        self.bar = progress(
            desc=self.title, total=self.trainer.max_iter, leave=True, position=self.position
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


@contextmanager
def logging_to(folder: Path) -> Iterator[None]:
    """Log everything to ``folder``/log.txt; the terminal shows only warnings and the bars."""
    names = ("detectron2", "fvcore", "cdgcnet", "cdgc")
    loggers = [setup_logger(str(folder), name=name) for name in names]
    for logger in loggers:
        for handler in logger.handlers:
            if getattr(handler, "stream", None) is sys.stdout:
                handler.setLevel(logging.WARNING)
    try:
        yield
    finally:
        # The next task of this process logs to another file.
        for logger in loggers:
            logger.handlers.clear()
        setup_logger.cache_clear()


def config_of(name: str, folder: Path, quick: bool) -> CfgNode:
    """A config of the street scenes that writes to ``folder``."""
    overrides = ["OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", "from_scratch"]
    if quick:
        overrides += ["SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "2"]
    return load_cfg(config_path(f"Streets-SemanticSegmentation/{name}.yaml"), overrides)


def start_trainer(data: Path) -> None:
    """Prepare one of two processes that share the cores of the machine."""
    start_worker(signal.SIG_DFL)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    flush_subnormals()
    register_all(data)


def train(cfg: CfgNode, title: str, position: int) -> None:
    """Train one network."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    with logging_to(folder):
        (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        seed_all_rng(cfg.SEED)
        cfg.DATASETS.TEST = ()  # evaluated below, with a bar
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.register_hooks([ProgressBar(f"training {title}", position)])
        trainer.train()


def trained(cfg: CfgNode) -> CfgNode:
    """The config with the weights that :func:`train` wrote."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    return cfg


def score(cfg: CfgNode, title: str, position: int, images: int, tta: bool = False) -> dict:
    """Evaluate a trained network on the first validation scenes."""
    with logging_to(Path(cfg.OUTPUT_DIR)):
        cfg = trained(cfg)
        cfg.TEST.AUG.ENABLED = tta  # the loader then provides the images before any resize
        predictor = Predictor(cfg, tta=tta)
        model = predictor.model if predictor.tta is None else predictor.tta
        loader = FirstImages(Trainer.build_test_loader(cfg, VAL), images)
        bar = progress(loader, f"evaluating {title}", "image", leave=True, position=position)
        results = evaluate(cfg, model, bar, VAL)
        bar.close()
        return results


def draw(cfg: CfgNode, sheet: Path, changes: Path, images: int) -> None:
    """Draw whole predictions, and enlarged crops of what the graph changed."""
    with logging_to(Path(cfg.OUTPUT_DIR)):
        extractor = FeatureExtractor(trained(cfg))
        compared = [extractor(sample).compared for sample in DatasetCatalog.get(VAL)[:images]]
    style = MetadataCatalog.get(VAL), extractor.ignore_label
    draw_comparison(sheet, compared[:WHOLE_IMAGES], *style)
    draw_comparison(changes, compared, *style, crops=CROPS)


@contextmanager
def naming_log(title: str, folder: Path) -> Iterator[None]:
    """
    Raises:
        ChildProcessError: naming the log of a task that failed in its process.
    """
    try:
        yield
    except Exception as error:
        raise ChildProcessError(
            f"{title} failed: {str(error) or type(error).__name__}; see {folder / 'log.txt'}"
        ) from error


def train_and_score(cfgs: dict[str, CfgNode], data: Path, output: Path, images: int) -> dict:
    """Train and evaluate the networks in two processes, which use two cores best.

    Returns:
        Metrics by task.
    """
    plain, graph = cfgs["no graph"], cfgs["CDGCNet"]
    with WorkerPool(2, start_trainer, (data,)) as pool:
        plain_training = pool.submit(train, plain, "no graph", 0)
        graph_training = pool.submit(train, graph, "CDGCNet", 1)
        with naming_log("training no graph", Path(plain.OUTPUT_DIR)):
            plain_training.result()  # it is the faster one
        plain_scores = pool.submit(score, plain, "no graph", 0, images)
        with naming_log("training CDGCNet", Path(graph.OUTPUT_DIR)):
            graph_training.result()
        tta_scores = pool.submit(score, graph, "CDGCNet with TTA", 0, images, tta=True)
        graph_scores = pool.submit(score, graph, "CDGCNet", 1, images)
        drawn = pool.submit(
            draw, graph, output / "predictions.png", output / "changes.png", min(images, 12)
        )
        with naming_log("evaluating no graph", Path(plain.OUTPUT_DIR)):
            results = {"no_graph": plain_scores.result()["sem_seg"]}
        with naming_log("evaluating CDGCNet", Path(graph.OUTPUT_DIR)):
            results.update(graph_scores.result())
            results["sem_seg_TTA"] = tta_scores.result()["sem_seg"]
            drawn.result()
    print("\n" * 2, end="", file=sys.stderr)  # keep the finished bars visible
    return results


def run_demo(output: Path, data: Path, quick: bool = False) -> None:
    """Run the demo and print its scores and the files it wrote.

    Args:
        output: an empty folder; made if it is not there.
        data: root below which the scenes are drawn once.
        quick: a few iterations on a few images.
    """
    start = time.time()
    output.mkdir(parents=True, exist_ok=True)
    scenes = write_street_scenes(data / streets.FOLDER, workers=2)
    register_all(data)
    count = 2 if quick else len(DatasetCatalog.get(VAL))
    cfgs = {
        "no graph": config_of("plain_r18_cpu", output / "no_graph", quick),
        "CDGCNet": config_of("cdgcnet_r18_cpu", output / "cdgcnet", quick),
    }
    results = train_and_score(cfgs, data, output, count)
    write_results(output / "results.json", results)

    cfg = cfgs["CDGCNet"]
    scales = ", ".join(str(s) for s in cfg.TEST.AUG.SCALES)
    print(f"\nIoU in percent on {count} validation scenes (TTA: scales {scales}, and flip)")
    print(format_table(results, COLUMNS))
    print(f"\ntook {(time.time() - start) / 60:.1f} minutes")
    print(f"scenes    {scenes}")
    print(f"pictures  {output / 'predictions.png'}")
    print(f"changes   {output / 'changes.png'}")
    print(f"results   {output / 'results.json'}")
    print(f"weights   {output / 'cdgcnet' / 'model_final.pth'}")
    print(f"logs      {output / 'cdgcnet' / 'log.txt'}")
