"""Training: a resumed run repeats the uninterrupted one, and what the logs say is so."""

import json
import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import PreciseBN
from detectron2.utils.env import seed_all_rng
from torch import nn

from cdgcnet import Predictor, Trainer, load_cfg
from cdgcnet.engine.defaults import run

pytestmark = pytest.mark.usefixtures("run_data", "clean_logging")


class Recorder(HookBase):
    """The exact loss and learning rates of every iteration."""

    def __init__(self):
        self.losses, self.rates = {}, {}

    def before_step(self):
        groups = self.trainer.optimizer.param_groups
        self.rates[self.trainer.iter] = sorted({g["lr"] for g in groups})

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses[self.trainer.iter] = {
            k: v for k, (v, _) in latest.items() if "loss" in k and "/" not in k
        }


class Stop(Exception):
    """Stands for the power cut."""


class StopAfter(HookBase):
    def __init__(self, iteration: int):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            raise Stop


def configured(cfg, folder: Path, *overrides):
    cfg = cfg.clone()
    cfg.merge_from_list(["OUTPUT_DIR", str(folder), *overrides])
    folder.mkdir(parents=True, exist_ok=True)
    return cfg


def train(cfg, resume: bool = False, stop_after: int | None = None) -> tuple[Trainer, Recorder]:
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    trainer = Trainer(cfg)
    recorder = Recorder()
    trainer.register_hooks([recorder])
    if stop_after is not None:
        trainer.register_hooks([StopAfter(stop_after)])
    trainer.resume_or_load(resume=resume)
    if stop_after is None:
        trainer.train()
    else:
        with pytest.raises(Stop):
            trainer.train()
    return trainer, recorder


def copy_checkpoint(source: Path, target: Path, iteration: int) -> None:
    """The state of a run that was killed right after that checkpoint."""
    target.mkdir(parents=True)
    name = f"model_{iteration:07d}.pth"
    shutil.copy(source / name, target / name)
    (target / "last_checkpoint").write_text(name)


def assert_same_state(one, other, path: str = "") -> None:
    """Nested states are equal bit for bit."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same_state(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_state(a, b, f"{path}/{i}")
    else:
        assert one == other, path


def saved(folder: Path, name: str = "model_final.pth") -> dict:
    return torch.load(folder / name, map_location="cpu", weights_only=False)


def metrics_lines(folder: Path) -> dict[int, dict]:
    """metrics.json by iteration, without what is a clock."""
    lines = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        scalars = json.loads(line)
        kept = {k: v for k, v in scalars.items() if "time" not in k and "seconds" not in k}
        lines.setdefault(scalars["iteration"], {}).update(kept)
    return lines


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="plain"),
        pytest.param(("SEED", "-1"), id="seed -1"),
        pytest.param(("DATALOADER.NUM_WORKERS", "2"), id="two workers"),
        pytest.param(("MODEL.CDGC.ENABLED", "False"), id="no graph"),
        pytest.param(("SOLVER.HEAD_LR_FACTOR", "3.0", "SOLVER.WARMUP_ITERS", "3"), id="warm-up"),
        pytest.param(("INPUT.COLOR_JITTER", "True"), id="color"),
        pytest.param(("SOLVER.OPTIMIZER", "ADAMW"), id="AdamW"),
        pytest.param(("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bf16"), id="bf16"),
    ],
)
def test_resume_repeats_the_uninterrupted_run(run_cfg, tmp_path, overrides):
    # Dropout 0.1 and easy_ratio 0.5 are on: every source of randomness must be repeated.
    whole = configured(run_cfg, tmp_path / "whole", *overrides)
    _, straight = train(whole)
    copy_checkpoint(tmp_path / "whole", tmp_path / "half", 1)  # two of four iterations
    half = configured(run_cfg, tmp_path / "half", *overrides)
    trainer, resumed = train(half, resume=True)

    assert trainer.start_iter == 2 and sorted(resumed.losses) == [2, 3]
    for i in (2, 3):
        assert resumed.losses[i] == straight.losses[i]
        assert resumed.rates[i] == straight.rates[i]
    # Weights, batch norm statistics, momentum, schedule, iteration, seed.
    assert_same_state(saved(tmp_path / "half"), saved(tmp_path / "whole"))


def test_resume_after_a_crash_gives_the_same_metrics_json(run_cfg, tmp_path):
    # Scalars are medians over 20 iterations, so the checkpoint lies on a multiple of 20.
    keys = ("SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "20", "MODEL.CDGC.CONTEXT", "none")
    train(configured(run_cfg, tmp_path / "whole", *keys))
    cut = configured(run_cfg, tmp_path / "cut", *keys)
    train(cut, stop_after=22)
    train(cut, resume=True)
    whole, resumed = metrics_lines(tmp_path / "whole"), metrics_lines(tmp_path / "cut")
    for iteration in (19, 39):
        assert resumed[iteration] == whole[iteration]
    losses = {"total_loss", "loss_coarse", "loss_refined", "loss_aux"}
    assert losses | {"lr", "nodes/hard_positive"} <= whole[39].keys()
    assert_same_state(saved(tmp_path / "cut")["model"], saved(tmp_path / "whole")["model"])


def test_resume_twice_and_resume_of_a_finished_run(run_cfg, tmp_path):
    keys = ("SOLVER.CHECKPOINT_PERIOD", "1")
    train(configured(run_cfg, tmp_path / "whole", *keys))
    cut = configured(run_cfg, tmp_path / "cut", *keys)
    train(cut, stop_after=1)  # the stop comes before this iteration's checkpoint
    train(cut, resume=True, stop_after=2)
    train(cut, resume=True)
    assert_same_state(saved(tmp_path / "cut")["model"], saved(tmp_path / "whole")["model"])
    trainer, recorder = train(cut, resume=True)
    assert trainer.start_iter == 4 and recorder.losses == {}
    assert_same_state(saved(tmp_path / "cut")["model"], saved(tmp_path / "whole")["model"])


def test_randomness_does_not_hang_on_evaluation(run_cfg, tmp_path):
    # A periodic evaluation draws nothing from the training's streams.
    _, without = train(configured(run_cfg, tmp_path / "a"))
    _, with_evaluation = train(configured(run_cfg, tmp_path / "b", "TEST.EVAL_PERIOD", "1"))
    assert without.losses == with_evaluation.losses


def test_seed_decides_the_run(run_cfg, tmp_path):
    _, one = train(configured(run_cfg, tmp_path / "a", "SOLVER.MAX_ITER", "2"))
    _, same = train(configured(run_cfg, tmp_path / "b", "SOLVER.MAX_ITER", "2"))
    _, other = train(configured(run_cfg, tmp_path / "c", "SOLVER.MAX_ITER", "2", "SEED", "4"))
    assert one.losses == same.losses
    assert one.losses[0] != other.losses[0] and one.losses[1] != other.losses[1]


def test_seed_decides_the_samples_too(run_cfg, tmp_path):
    # Not only weights and dropout: the order of images and their augmentation.
    batches = []
    for i, seed in enumerate((3, 4, 3)):
        trainer = Trainer(configured(run_cfg, tmp_path / str(i), "SEED", str(seed)))
        trainer.resume_or_load(resume=False)
        batches.append(next(iter(trainer.data_loader)))
    images = [[x["image"] for x in batch] for batch in batches]
    assert all(torch.equal(a, b) for a, b in zip(images[0], images[2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(images[0], images[1], strict=True))


def test_two_runs_with_seed_minus_one_differ(run_cfg, tmp_path):
    keys = ("SEED", "-1", "SOLVER.MAX_ITER", "1")
    runs = [train(configured(run_cfg, tmp_path / str(i), *keys)) for i in range(2)]
    assert runs[0][0].run_seed != runs[1][0].run_seed
    assert runs[0][1].losses != runs[1][1].losses


# ---------------------------------------------------------------- learning rates


def test_poly_schedule_by_hand(run_cfg, tmp_path):
    cfg = configured(run_cfg, tmp_path / "run", "SOLVER.HEAD_LR_FACTOR", "5.0")
    _, recorder = train(cfg)
    for i in range(4):
        rate = 0.02 * (1 - i / 4) ** 0.9  # 0.02, 0.0154, 0.0107, 0.0057
        assert recorder.rates[i] == pytest.approx([rate, 5 * rate])
    assert recorder.rates[2] == pytest.approx([0.010718, 0.053589], abs=1e-6)  # 0.5**0.9 = 0.53589


def test_each_parameter_is_in_the_group_of_its_part(run_cfg):
    run_cfg.merge_from_list(["SOLVER.HEAD_LR_FACTOR", "10.0", "SOLVER.WEIGHT_DECAY", "0.0005"])
    model = Trainer.build_model(run_cfg)
    optimizer = Trainer.build_optimizer(run_cfg, model)
    rates, decays = {}, {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert id(p) not in rates  # no parameter twice
            rates[id(p)], decays[id(p)] = group["lr"], group["weight_decay"]
    for name, p in model.named_parameters():
        expected = 0.2 if name.startswith("sem_seg_head.") else 0.02
        assert rates[id(p)] == pytest.approx(expected), name
        assert decays[id(p)] == 0.0005, name  # on norms and biases too, as the PSPNet family
    assert len(rates) == len(list(model.parameters()))


def test_parts_of_a_users_meta_architecture_are_trained(run_cfg):
    run_cfg.merge_from_list(["SOLVER.HEAD_LR_FACTOR", "10.0"])
    model = Trainer.build_model(run_cfg)
    before = Trainer.build_optimizer(run_cfg, model).param_groups
    model.neck = nn.Conv2d(8, 8, 1)
    model.scale = nn.Parameter(torch.ones(1))
    model.neck.tied = model.backbone.stem.conv1.weight  # in its part's group only
    *same, added = Trainer.build_optimizer(run_cfg, model).param_groups
    for old, new in zip(before, same, strict=True):  # a checkpoint's optimizer still fits
        assert list(map(id, old.pop("params"))) == list(map(id, new.pop("params")))
        assert old == new
    found = {id(p) for p in added["params"]}
    assert found == {id(p) for p in (model.scale, model.neck.weight, model.neck.bias)}
    assert added["lr"] == pytest.approx(0.02)
    del model.backbone, model.sem_seg_head
    [only] = Trainer.build_optimizer(run_cfg, model).param_groups
    assert len(only["params"]) == 4


def test_one_step_moves_every_parameter_but_those_of_absent_classes(run_cfg, tmp_path):
    cfg = configured(run_cfg, tmp_path / "run", "SOLVER.MAX_ITER", "1", "MODEL.CDGC.DROPOUT", "0.0")
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    before = {k: v.clone() for k, v in trainer.model.named_parameters()}
    trainer.train()
    still = [k for k, v in trainer.model.named_parameters() if torch.equal(v, before[k])]
    assert still == []


# ---------------------------------------------------------------- what is logged and kept


def test_losses_node_shares_and_files(run_cfg, tmp_path):
    cfg = configured(run_cfg, tmp_path / "run", "TEST.EVAL_PERIOD", "2")
    train(cfg)
    folder = tmp_path / "run"
    lines = metrics_lines(folder)
    shares = {k: v for k, v in lines[0].items() if k.startswith("nodes/")}
    assert set(shares) == {"nodes/easy_positive", "nodes/hard_positive", "nodes/hard_negative"}
    assert sum(shares.values()) == pytest.approx(1)
    last = lines[3]
    parts = ("loss_coarse", "loss_refined", "loss_aux")
    assert all(last[k] > 0 for k in parts)
    # Detectron2 logs an evaluation at the last finished iteration, the final one at MAX_ITER.
    for iteration in (1, 4):
        assert {"sem_seg/mIoU", "sem_seg_coarse/mIoU"} <= lines[iteration].keys()
    for name in ("model_final.pth", "model_best.pth", "last_checkpoint", "metrics.json"):
        assert (folder / name).is_file()


def test_total_loss_is_the_sum_of_its_parts(run_cfg, tmp_path):
    _, recorder = train(configured(run_cfg, tmp_path / "run"))
    for losses in recorder.losses.values():
        parts = [v for k, v in losses.items() if k != "total_loss"]
        assert len(parts) == 3
        assert losses["total_loss"] == pytest.approx(sum(parts))


def test_precise_statistics_come_from_a_loader_without_workers(run_cfg, tmp_path, monkeypatch):
    workers = []
    build = Trainer.build_train_loader.__func__

    def build_train_loader(cls, cfg):
        workers.append(cfg.DATALOADER.NUM_WORKERS)
        return build(cls, cfg)

    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(build_train_loader))
    pairs = "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "1"
    cfg = configured(run_cfg, tmp_path / "run", *pairs, "DATALOADER.NUM_WORKERS", "1")
    trainer = Trainer(cfg)
    assert any(isinstance(hook, PreciseBN) for hook in trainer._hooks)
    assert workers == [1, 0]  # the training's, and that of the statistics


def test_no_node_shares_without_a_graph(run_cfg, tmp_path):
    cfg = configured(run_cfg, tmp_path / "run", "MODEL.CDGC.ENABLED", "False")
    _, recorder = train(cfg)
    assert set(recorder.losses[0]) == {"loss_baseline", "loss_aux", "total_loss"}
    assert not any(
        k.startswith("nodes/") for line in metrics_lines(tmp_path / "run").values() for k in line
    )


class _Scores(Trainer):
    """Evaluations with given results."""

    scores: ClassVar[list[float]] = []

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {"sem_seg": {"mIoU": cls.scores.pop(0)}}


def _train_with(
    cfg, scores: list[float], resume: bool = False, trainer_class: type[_Scores] = _Scores
) -> _Scores:
    _Scores.scores = list(scores)
    seed_all_rng(cfg.SEED)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    assert _Scores.scores == []
    return trainer


@pytest.mark.parametrize(
    ("scores", "best_iteration", "best"),
    [
        ([10.0, 30.0, 20.0, 25.0], 1, 30.0),
        # The last evaluation counts too; Detectron2 logs it at MAX_ITER.
        ([10.0, 20.0, 30.0, 40.0], 4, 40.0),
        ([30.0, 30.0, 30.0, 30.0], 0, 30.0),  # the first of equals stays
        ([float("nan"), 5.0, float("nan"), 4.0], 1, 5.0),
    ],
)
def test_best_weights_are_kept(run_cfg, tmp_path, scores, best_iteration, best):
    keys = ("TEST.EVAL_PERIOD", "1", "SOLVER.CHECKPOINT_PERIOD", "1")
    _train_with(configured(run_cfg, tmp_path / "run", *keys), scores)
    kept = saved(tmp_path / "run", "model_best.pth")
    assert (kept["iteration"], kept["mIoU"]) == (best_iteration, best)
    # Checkpoints are written after the hooks of an iteration: the weights are those of that one.
    there = "model_final.pth" if best_iteration == 4 else f"model_{best_iteration:07d}.pth"
    assert_same_state(kept["model"], saved(tmp_path / "run", there)["model"])
    assert not list((tmp_path / "run").glob("*.part*"))


def test_best_is_remembered_over_a_resume(run_cfg, tmp_path):
    keys = ("TEST.EVAL_PERIOD", "1")
    cfg = configured(run_cfg, tmp_path / "run", *keys)
    _train_with(cfg, [10.0, 50.0, 20.0, 20.0])
    folder = tmp_path / "run"
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    _train_with(cfg, [40.0, 45.0], resume=True)
    kept = saved(folder, "model_best.pth")
    assert (kept["iteration"], kept["mIoU"]) == (1, 50.0)
    # And the best file is not what a run resumes from.
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


class _ScoresOfTwo(_Scores):
    """The given results are those of the first test set; all other scores rise all the time."""

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        rising = 50.0 - len(cls.scores)
        first, second = cfg.DATASETS.TEST
        return {
            first: {"sem_seg_coarse": {"mIoU": rising}, **super().test(cfg, model)},
            second: {"sem_seg": {"mIoU": rising}},
        }


def test_best_is_by_the_refined_score_of_the_first_test_set(run_cfg, tmp_path):
    keys = ("TEST.EVAL_PERIOD", "1")
    cfg = configured(run_cfg, tmp_path / "run", *keys)
    cfg.DATASETS.TEST = ("cdgc_cityscapes_val", "cdgc_cityscapes_train")
    _train_with(cfg, [10.0, 30.0, 20.0, 25.0], trainer_class=_ScoresOfTwo)
    kept = saved(tmp_path / "run", "model_best.pth")
    assert (kept["iteration"], kept["mIoU"]) == (1, 30.0)


# ---------------------------------------------------------------- end to end


def read_results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


TASKS = {"sem_seg", "sem_seg_coarse", "sem_seg_oracle", "graph"}


def test_train_and_evaluate_with_and_without_tta(run_cfg, tmp_path):
    plain = configured(run_cfg, tmp_path / "plain", "SOLVER.MAX_ITER", "2")
    seed_all_rng(plain.SEED)
    returned = run(plain)
    results = read_results(tmp_path / "plain")
    assert set(results) == set(returned) == TASKS

    keys = (
        "MODEL.WEIGHTS",
        str(tmp_path / "plain" / "model_final.pth"),
        "TEST.AUG.ENABLED",
        "True",
    )
    augmented = configured(run_cfg, tmp_path / "tta", *keys)
    run(augmented, eval_only=True)
    with_tta = read_results(tmp_path / "tta")
    assert set(with_tta) == {*TASKS, "sem_seg_TTA"}
    # The numbers without TTA are those of the training run itself.
    assert with_tta["sem_seg"] == results["sem_seg"]
    assert with_tta["sem_seg_coarse"] == results["sem_seg_coarse"]
    assert with_tta["sem_seg_TTA"].keys() == results["sem_seg"].keys()
    for task in with_tta.keys() - {"graph"}:
        assert 0 <= with_tta[task]["mIoU"] <= 100


def test_tta_after_training(run_cfg, tmp_path):
    keys = ("SOLVER.MAX_ITER", "1", "TEST.AUG.ENABLED", "True", "TEST.EVAL_PERIOD", "1")
    results = run(configured(run_cfg, tmp_path / "run", *keys))
    assert set(results) == {*TASKS, "sem_seg_TTA"}


def test_tta_with_one_view_is_the_plain_prediction(run_cfg, tmp_path):
    keys = ("TEST.AUG.SCALES", "[1.0]", "TEST.AUG.FLIP", "False")
    cfg = configured(run_cfg, tmp_path / "run", *keys)
    model = Trainer.build_model(cfg).eval()
    plain = Trainer.test(cfg, model)["sem_seg"]
    tta = Trainer.test_with_TTA(cfg, model)["sem_seg_TTA"]
    assert tta["pACC"] == pytest.approx(plain["pACC"], abs=0.03)  # rounding ties: 5 px of 18432


def test_several_test_sets_are_kept_apart(run_cfg, tmp_path):
    cfg = configured(run_cfg, tmp_path / "run", "SOLVER.MAX_ITER", "1", "TEST.AUG.ENABLED", "True")
    cfg.DATASETS.TEST = ("cdgc_cityscapes_val", "cdgc_cityscapes_train")
    results = run(cfg)
    assert set(results) == set(cfg.DATASETS.TEST)
    for scores in results.values():
        assert set(scores) == {*TASKS, "sem_seg_TTA"}


def test_training_twice_into_one_folder_keeps_the_earlier_results(run_cfg, tmp_path):
    cfg = configured(run_cfg, tmp_path / "run", "SOLVER.MAX_ITER", "1")
    run(cfg)
    first = (tmp_path / "run" / "results.json").read_bytes()
    (tmp_path / "run" / "results.1.json").write_text("of an even earlier run")
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    run(cfg, eval_only=True)
    assert (tmp_path / "run" / "results.1.json").read_text() == "of an even earlier run"
    assert (tmp_path / "run" / "results.2.json").read_bytes() == first


def test_label_out_of_range_stops_training_with_the_file(run_cfg, run_root, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    from cdgcnet import register_all

    shutil.copytree(run_root / "cityscapes", tmp_path / "data" / "cityscapes")
    for label in (tmp_path / "data").rglob("*train*/*labelTrainIds.png"):
        Image.fromarray(np.full((64, 96), 33, np.uint8)).save(label)  # a label id
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    register_all()
    trainer = Trainer(configured(run_cfg, tmp_path / "run"))
    trainer.resume_or_load(False)
    with pytest.raises(ValueError, match=r"labelTrainIds\.png: label value 33 .*palette PNG"):
        trainer.train()
    assert not list((tmp_path / "run").glob("*.pth"))


def test_emulated_bfloat16_warns(run_cfg, tmp_path, monkeypatch, caplog):
    cfg = configured(
        run_cfg, tmp_path, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bf16"
    )
    warned = []
    for native in (True, False):
        monkeypatch.setattr("cdgcnet.engine.trainer.has_bfloat16", lambda _, native=native: native)
        caplog.clear()
        Trainer(cfg)
        warned.append("no bfloat16 instructions" in caplog.text)
    assert warned == [False, True]


@pytest.mark.slow
def test_a_timm_backbone_starts_from_its_file_and_resumes_from_a_checkpoint(run_cfg, tmp_path):
    timm = pytest.importorskip("timm")
    whole = timm.create_model("resnet18", pretrained=False)
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    cfg = configured(
        run_cfg,
        tmp_path / "run",
        *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet18"),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", "['layer3', 'layer4']"),
        *("MODEL.TIMM.PRETRAINED", str(tmp_path / "resnet18.pth"), "MODEL.WEIGHTS", ""),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    first = trainer.model.backbone.net["conv1"].weight
    assert torch.equal(first, whole.conv1.weight)
    train(cfg)
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == cfg.SOLVER.MAX_ITER
    trained = resumed.model.backbone.net["conv1"].weight
    assert not torch.equal(trained, whole.conv1.weight)
    # The run's own config, which still names the file that it started from, is enough to predict.
    (tmp_path / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    weights = str(tmp_path / "run" / "model_final.pth")
    again = load_cfg(str(tmp_path / "config.yaml"), ["MODEL.WEIGHTS", weights])
    assert torch.equal(Predictor(again).model.backbone.net["conv1"].weight, trained)
    with pytest.raises(ValueError, match="starts from one of them"):
        Trainer(again).resume_or_load(resume=False)
