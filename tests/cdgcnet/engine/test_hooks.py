"""Pictures of predictions and Weights & Biases during a training run."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter, get_event_storage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cdgcnet import Trainer
from cdgcnet.data.evaluation_mapper import build_evaluation_mapper
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.engine.defaults import run
from cdgcnet.engine.hooks import SamplePredictions

pytestmark = pytest.mark.usefixtures("run_data", "clean_logging")
VAL = "cdgc_cityscapes_val"


class Wandb(SimpleNamespace):
    """Stands in for the package: keeps what a run is given."""

    def __init__(self):
        super().__init__(started=[], logged=[], finished=0)

    def init(self, **options):
        self.started.append(options)
        return SimpleNamespace(id="run-7", log=self.log, finish=self.finish)

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1

    def Image(self, pixels):
        return pixels


@pytest.fixture
def wandb(monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_building_a_trainer_opens_no_files(run_cfg, tmp_path):
    Trainer(run_cfg)
    assert not list(tmp_path.iterdir())


def test_the_hooks_are_detectron2s_with_ours_among_them(run_cfg):
    run_cfg.TEST.PRECISE_BN.ENABLED = True
    run_cfg.VIS_PERIOD = 2
    names = [type(hook).__name__ for hook in Trainer(run_cfg)._hooks]
    assert names == [
        "SmoothingHistory",
        "IterationTimer",
        "LRScheduler",
        "PreciseBN",
        "PeriodicCheckpointer",
        "Evaluation",
        "BestModel",
        "SamplePredictions",
        "Writing",
    ]


class Counter(EventWriter):
    """A user's writer, which must not be built before the training starts."""

    built = 0

    def __init__(self):
        Counter.built += 1
        self.steps = []

    def write(self):
        self.steps.append(get_event_storage().iter)


def test_writers_of_a_user_are_built_once_when_training_starts(run_cfg, monkeypatch):
    class WithCounter(Trainer):
        def build_writers(self):
            return [Counter(), *super().build_writers()]

    monkeypatch.setattr(Counter, "built", 0)
    trainer = WithCounter(run_cfg)
    trainer.resume_or_load(resume=False)
    assert Counter.built == 0
    Path(run_cfg.OUTPUT_DIR).mkdir()
    trainer.train()
    assert Counter.built == 1
    [counter] = (w for w in trainer._hooks[-1]._writers if isinstance(w, Counter))
    assert counter.steps == [3, 4]  # after the last of four iterations, and at the end


def test_tensorboard_shows_predictions(run_cfg):
    run_cfg.VIS_PERIOD = 2
    run(run_cfg)
    events = EventAccumulator(run_cfg.OUTPUT_DIR, size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"predictions/{i}" for i in range(3)]  # the set has three
    pictures = events.Images("predictions/0")
    assert [picture.step for picture in pictures] == [1, 3]
    height, width = read_image(DatasetCatalog.get(VAL)[0]["file_name"]).shape[:2]
    assert (pictures[0].height, pictures[0].width) == (height, 4 * width)


def test_a_broken_test_image_has_no_picture(run_cfg, tmp_path, caplog):
    [first, second, _] = DatasetCatalog.get(VAL)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    hook = SamplePredictions(
        1,
        Trainer.build_model(run_cfg),
        [{**first, "file_name": str(broken)}, second],
        build_evaluation_mapper(run_cfg),
        LabelSpec.from_config(run_cfg),
        MetadataCatalog.get(VAL),
    )
    pictures: dict = {}
    storage = SimpleNamespace(put_image=pictures.__setitem__)
    hook.trainer = SimpleNamespace(iter=0, max_iter=1, storage=storage)
    hook.after_step()
    assert list(pictures) == ["predictions/1"]
    assert "broken.png" in caplog.text


def test_pictures_do_not_change_the_training(run_cfg):
    losses = []
    for name, period in (("without", 0), ("with", 1)):
        cfg = run_cfg.clone()
        cfg.VIS_PERIOD = period
        cfg.OUTPUT_DIR = f"{run_cfg.OUTPUT_DIR}_{name}"
        seed_all_rng(cfg.SEED)  # of the first weights
        run(cfg)
        with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
            lines = [json.loads(line) for line in file]
        losses.append([line["total_loss"] for line in lines if "total_loss" in line])
    assert losses[0] == losses[1] != []


def test_a_network_without_a_refinement_has_three_panels(run_cfg):
    run_cfg.VIS_PERIOD = 4
    run_cfg.MODEL.CDGC.ENABLED = False
    run(run_cfg)
    events = EventAccumulator(run_cfg.OUTPUT_DIR, size_guidance={"images": 0}).Reload()
    width = read_image(DatasetCatalog.get(VAL)[0]["file_name"]).shape[1]
    assert events.Images("predictions/0")[0].width == 3 * width


def test_weights_and_biases_gets_scalars_and_pictures(run_cfg, wandb):
    run_cfg.WANDB_PROJECT = "my-project"
    run_cfg.VIS_PERIOD = 4
    run(run_cfg)
    [options] = wandb.started
    assert options["project"] == "my-project" and options["id"] is None
    assert options["config"]["SOLVER"]["MAX_ITER"] == 4
    values = {name: value for _, logged in wandb.logged for name, value in logged.items()}
    with open(f"{run_cfg.OUTPUT_DIR}/metrics.json") as file:
        metrics = {k: v for line in file for k, v in json.loads(line).items()}
    assert values["total_loss"] == metrics["total_loss"]
    assert values["sem_seg/mIoU"] == pytest.approx(metrics["sem_seg/mIoU"])
    picture = values["predictions/0"]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert [step for step, _ in wandb.logged] == sorted({step for step, _ in wandb.logged})
    assert wandb.finished == 1


def test_a_resumed_training_continues_its_run_and_a_new_one_does_not(run_cfg, wandb):
    run_cfg.WANDB_PROJECT = "my-project"
    run(run_cfg)
    folder = Path(run_cfg.OUTPUT_DIR)
    (folder / "results.json").unlink()  # its evaluation is left
    run(run_cfg, resume=True)
    assert [options["id"] for options in wandb.started] == [None, "run-7"]
    # W&B drops steps below the last one, which a training from the start would begin with.
    for checkpoint in (*folder.glob("*.pth"), folder / "last_checkpoint"):
        checkpoint.unlink()
    run(run_cfg)
    assert [options["id"] for options in wandb.started] == [None, "run-7", None]


def test_weights_and_biases_is_not_installed(run_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    run_cfg.WANDB_PROJECT = "my-project"
    with pytest.raises(ValueError, match=r"pip install 'cdgcnet\[wandb\]'"):
        Trainer(run_cfg).build_writers()
