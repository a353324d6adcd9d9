"""The long jobs of a user, small enough to be killed a few hundred times.

Each job can be started again with the same command after an interruption, and its result must then
be that of an undisturbed run.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import cdgcnet.engine.defaults  # noqa: F401  once here, not in every forked process
from cdgcnet.cli.main import main
from cdgcnet.data.image_folder import files_in
from cdgcnet.data.prepare.archives import File
from cdgcnet.data.prepare.conversion import Job as Conversion
from cdgcnet.data.prepare.conversion import Runner
from cdgcnet.data.synthetic.writer import write_street_scenes
from cdgcnet.evaluation.submission import pack, server_of

CONFIG = """
MODEL:
  DEVICE: cpu
  WEIGHTS: {weights}
  RESNETS: {{DEPTH: 18, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8, NORM: BN}}
  SEM_SEG_HEAD: {{NUM_CLASSES: 19, NORM: BN, ASPP_CHANNELS: 8, ASPP_DILATIONS: [1, 2, 3]}}
  CDGC: {{NORM: BN, CHANNELS: 8, AUX_CHANNELS: 8, LOSS: {{OHEM_MIN_KEPT: 0.25}}}}
INPUT: {{CROP: {{SIZE: [33, 33]}}}}
DATASETS: {{TRAIN: [cdgc_cityscapes_train], TEST: [cdgc_cityscapes_val]}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{BASE_LR: 0.02, IMS_PER_BATCH: 2, MAX_ITER: 6, CHECKPOINT_PERIOD: 1}}
TEST: {{EVAL_PERIOD: 3, PICTURES: False}}
SEED: 3
VERSION: 2
"""


@dataclass(frozen=True)
class Job:
    """A command of a user.

    Attributes:
        run: does the work in a folder and returns the exit code; may be called again. Training
            and evaluation take a number of ``workers`` besides.
        result: what an undisturbed run leaves, in a comparable form.
        pattern: files that the job writes; half of the kills come just after one has appeared.
    """

    run: Callable[..., int]
    result: Callable[[Path], object]
    pattern: str


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- training and evaluation
def train(config: Path, folder: Path, workers: int = 0) -> int:
    words = ["train", "--config-file", str(config), "--resume", "OUTPUT_DIR", str(folder / "run")]
    return main([*words, "DATALOADER.NUM_WORKERS", str(workers)])


def training_result(folder: Path) -> object:
    run = folder / "run"
    state = torch.load(run / "model_final.pth", weights_only=True)["model"]
    weights = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        weights.update(name.encode() + tensor.numpy().tobytes())
    for line in (run / "metrics.json").read_text().splitlines():
        json.loads(line)  # every line is whole; which iterations are logged depends on the stops
    return weights.hexdigest(), json.loads((run / "results.json").read_text())


def evaluate(config: Path, weights: Path, folder: Path, workers: int = 0) -> int:
    words = ["eval", "--config-file", str(config), "OUTPUT_DIR", str(folder / "run")]
    words += ["DATALOADER.NUM_WORKERS", str(workers)]
    return main([*words, "MODEL.WEIGHTS", str(weights), "TEST.RESUME", "True"])


def evaluation_result(folder: Path) -> object:
    return json.loads((folder / "run" / "results.json").read_text())


# ---------------------------------------------------------------- preparation and packaging
def prepare(source: Path, folder: Path) -> int:
    jobs = [
        Conversion(File(path.as_posix()), folder / "labels" / path.name)
        for path in sorted(source.glob("*.png"))
    ]
    runner = Runner(workers=0)
    runner.run(jobs, "preparing")
    return 1 if runner.failures else 0


def preparation_result(folder: Path) -> object:
    return {path.name: _digest(path) for path in files_in(folder / "labels")}


def package(images: list[str], labels: list[Path], folder: Path) -> int:
    target = folder / "package.zip"
    if not target.exists():
        pack(server_of("cityscapes"), images, labels, target)
    return 0


def package_result(folder: Path) -> object:
    return sorted(path.name for path in folder.glob("package.zip"))


def make_jobs(root: Path) -> dict[str, Job]:
    """All jobs, with their inputs written below ``root``; trains once for a checkpoint."""
    os.environ["DETECTRON2_DATASETS"] = str(root / "datasets")
    if not (root / "datasets" / "cityscapes").is_dir():
        scenes = root / "datasets" / "cityscapes"
        write_street_scenes(scenes, num_train=4, num_val=3, height=64, width=96)
    weights = root / "start.pth"
    config = root / "config.yaml"
    if not weights.is_file():
        from detectron2.modeling import build_model

        from cdgcnet import load_cfg

        config.write_text(CONFIG.format(weights='""'), encoding="utf-8")
        torch.manual_seed(0)
        model = build_model(load_cfg(str(config)))
        torch.save({"model": model.state_dict()}, weights)
        config.write_text(CONFIG.format(weights=weights), encoding="utf-8")
    source = root / "source"
    images, labels = [], []
    for i in range(20):
        name = f"frankfurt_{i:06}_000000"
        image, label = root / "images" / f"{name}_leftImg8bit.png", source / f"{name}.png"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file():
                values = np.random.default_rng(i).integers(0, 19, (64, 96)).astype(np.uint8)
                Image.fromarray(values).save(path)
        images.append(str(image))
        labels.append(label)
    return {
        "training": Job(partial(train, config), training_result, "run/*.pth*"),
        "evaluation": Job(partial(evaluate, config, weights), evaluation_result, "run/**/*.json*"),
        "preparation": Job(partial(prepare, source), preparation_result, "labels/*"),
        "packaging": Job(partial(package, images, labels), package_result, "package*"),
    }
