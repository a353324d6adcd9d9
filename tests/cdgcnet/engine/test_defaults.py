"""Bad input to train_net.py: a clear message, a non-zero exit, nothing overwritten."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cdgcnet import Trainer, load_cfg
from cdgcnet.cli import train
from cdgcnet.engine.defaults import run, setup

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("run_data", "clean_logging")


def train_net(*argv: str) -> dict:
    """Train as ``cdgcnet train`` does, or evaluate, in this process; returns the results."""
    parser = argparse.ArgumentParser(prog="train_net.py")
    train.add_run_arguments(parser)
    parser.add_argument("--eval-only", action="store_true")
    args = parser.parse_args([str(a) for a in argv])
    return run(setup(args), eval_only=args.eval_only, resume=args.resume)


def refused(*argv: str) -> str:
    """The message of a run that must end with a user's error."""
    with pytest.raises((ValueError, OSError)) as caught:
        train_net(*argv)
    message = str(caught.value)
    assert len(message) > 15, message  # it says something
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def start(run_yaml, folder):
    """Arguments that would work, to which each test adds its mistake."""
    return ["--config-file", run_yaml, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", "1"]


@pytest.fixture
def weights(run_yaml, tmp_path):
    """An untrained checkpoint of the tiny net."""
    model = Trainer.build_model(load_cfg(str(run_yaml)))
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


# ---------------------------------------------------------------- wrong from the start

# Settings of a training run elsewhere, which only training depends on: a GPU, and two processes
# with an image each.
ONLY_IN_TRAINING = [
    ["SOLVER.AMP.ENABLED", "True"],
    ["MODEL.CDGC.CONTEXT_MODULE", "psp", "SOLVER.IMS_PER_BATCH", "1"],
]
# Everything that can be known before data or weights are read: arguments, expected words.
MISTAKES = {
    "wrong value": (
        ["MODEL.CDGC.NODES", "sharp"],
        ["MODEL.CDGC.NODES", "'sharp'", "dynamic", "coarse"],
    ),
    "wrong number": (["MODEL.CDGC.EASY_RATIO", "1.5"], ["MODEL.CDGC.EASY_RATIO", "1.5", "0 to 1"]),
    "wrong type": (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER"]),
    "unknown key": (["MODEL.CDGC.NOODLES", "coarse"], ["NOODLES"]),
    "unknown section": (["MODEL.CDCG.NODES", "coarse"], ["CDCG"]),
    "key without a value": (["MODEL.CDGC.NODES"], ["MODEL.CDGC.NODES"]),
    "unknown dataset": (
        ["DATASETS.TRAIN", "('cdgc_cityscape_train',)"],
        ["DATASETS.TRAIN", "cdgc_cityscape_train", "cdgc_cityscapes_train"],
    ),
    "no dataset": (["DATASETS.TRAIN", "()"], ["DATASETS.TRAIN", "empty"]),
    "class count": (
        ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "11"],
        ["NUM_CLASSES is 11", "cdgc_cityscapes", "19 classes"],
    ),
    "missing weights": (["MODEL.WEIGHTS", "/not/there.pth"], ["MODEL.WEIGHTS", "/not/there.pth"]),
    "no GPU": (["MODEL.DEVICE", "cuda:7"], ["MODEL.DEVICE", "cpu"]),
    "scaled gradients on a CPU": (ONLY_IN_TRAINING[0], ["SOLVER.AMP.ENABLED", "MODEL.DEVICE cpu"]),
    "batch norm over one value": (ONLY_IN_TRAINING[1], ["SOLVER.IMS_PER_BATCH", "per process"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named_and_nothing_is_written(start, folder, name):
    if name == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments, words = MISTAKES[name]
    message = refused(*start, *arguments)
    for word in words:
        assert word in message
    assert not folder.exists()


def test_missing_config_file_is_named(tmp_path, folder):
    message = refused("--config-file", tmp_path / "no.yaml", "OUTPUT_DIR", folder)
    assert str(tmp_path / "no.yaml") in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("MODEL: [", "broken.yaml"),  # no YAML
        ("just words", "broken.yaml"),  # YAML, but no config
        ("MODEL: {CDGC: {NOODLES: 1}}", "MODEL.CDGC.NOODLES"),
        ("_BASE_: gone.yaml", "gone.yaml"),
    ],
)
def test_broken_config_file_is_named(tmp_path, folder, text, word):
    path = tmp_path / "broken.yaml"
    path.write_text(text + "\n")
    message = refused("--config-file", path, "OUTPUT_DIR", folder)
    assert word in message
    assert not folder.exists()


def test_config_file_that_is_a_folder_is_named(tmp_path):
    assert str(tmp_path) in refused("--config-file", tmp_path)


def test_output_dir_that_is_a_file_is_named(start, folder):
    folder.write_text("mine")
    assert str(folder) in refused(*start)
    assert folder.read_text() == "mine"


# ---------------------------------------------------------------- missing or wrong data, weights


def test_missing_data_set_names_folder_layout_and_variable(start, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    message = refused(*start)
    assert str(tmp_path / "nowhere" / "cityscapes") in message
    assert "expected layout" in message and "DETECTRON2_DATASETS" in message


def test_after_the_data_set_is_found_the_same_command_works(
    start, tmp_path, monkeypatch, run_root, folder
):
    # The mistake must not leave a folder that then passes for another run.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises((SystemExit, FileNotFoundError)):
        train_net(*start)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(run_root))
    train_net(*start)
    assert (folder / "results.json").is_file()


def test_missing_validation_set_is_found_before_training(start, tmp_path, monkeypatch, folder):
    # Not after the hours of training: the split that is evaluated is checked at the start.
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "cityscapes" / "leftImg8bit").symlink_to(tmp_path / "images")
    (tmp_path / "cityscapes" / "gtFine").symlink_to(tmp_path / "labels")
    source = Path(os.environ["DETECTRON2_DATASETS"]) / "cityscapes"
    for ours, theirs in (("images", "leftImg8bit"), ("labels", "gtFine")):
        (tmp_path / ours).mkdir()
        (tmp_path / ours / "train").symlink_to(source / theirs / "train")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises((SystemExit, FileNotFoundError)) as caught:
        train_net(*start)
    assert "leftImg8bit/val" in str(caught.value)
    assert not list(folder.glob("*.pth"))


@pytest.mark.parametrize("mode", ["train", "--eval-only"])
def test_weights_that_do_not_fit(start, tmp_path, weights, mode):
    state = torch.load(weights, weights_only=True)["model"]
    key = "sem_seg_head.coarse_predictor.1.weight"
    state[key] = state[key][:11]
    torch.save({"model": state}, tmp_path / "eleven.pth")
    arguments = [*start, "MODEL.WEIGHTS", tmp_path / "eleven.pth"]
    message = refused(*([mode] if mode != "train" else []), *arguments)
    assert "eleven.pth" in message and key in message
    assert "(11, 8, 1, 1)" in message and "(19, 8, 1, 1)" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_weights_that_are_no_checkpoint_are_named(start, tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    assert "broken.pth" in refused(*start, "MODEL.WEIGHTS", tmp_path / "broken.pth")


@pytest.fixture
def misfit(tmp_path):
    """A weight file whose mistake shows only once the network is built."""
    torch.save({"model": {"backbone.nonsense": torch.zeros(1)}}, tmp_path / "misfit.pth")
    return tmp_path / "misfit.pth"


@pytest.mark.parametrize("mode", ["train", "--resume", "--eval-only"])
def test_a_late_refusal_leaves_no_folder(start, tmp_path, misfit, mode):
    before = sorted(tmp_path.iterdir())
    deep = ["OUTPUT_DIR", tmp_path / "runs" / "today" / "first", "MODEL.WEIGHTS", misfit]
    assert "misfit.pth" in refused(*([mode] if mode != "train" else []), *start, *deep)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("mode", ["train", "--resume", "--eval-only"])
def test_a_late_refusal_changes_nothing_in_a_folder(start, folder, weights, misfit, mode):
    train_net("--eval-only", *start, "MODEL.WEIGHTS", weights)
    (folder / "notes.txt").write_text("mine")
    (folder / "metrics.json").write_text("of a training run whose checkpoints were moved away")
    before = contents(folder)
    refused(*([mode] if mode != "train" else []), *start, "MODEL.WEIGHTS", misfit)
    assert contents(folder) == before


def test_a_missing_program_for_the_metrics_is_known_at_the_start(start, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "cdgcnet[wandb]" in refused(*start, "WANDB_PROJECT", "streets")
    assert not folder.exists()


def test_the_log_holds_the_messages_of_the_start(start, folder):
    train_net(*start, "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.NESTEROV", "True")
    log = (folder / "log.txt").read_text("utf-8")
    messages = ("SOLVER.NESTEROV (", "Command line: ", "in short schedules", "Starting training")
    places = [log.index(message) for message in messages]
    assert places == sorted(places)
    assert log.count("Command line: ") == 1


def test_two_runs_of_a_process_have_a_log_each(start, tmp_path):
    for name in ("first", "second"):
        train_net(*start, "OUTPUT_DIR", tmp_path / name)
    for name in ("first", "second"):
        log = (tmp_path / name / "log.txt").read_text("utf-8")
        assert log.count("Starting training") == 1


def test_after_wrong_weights_the_right_ones_work(start, tmp_path, weights, folder):
    torch.save({"model": {"backbone.nonsense": torch.zeros(1)}}, tmp_path / "wrong.pth")
    with pytest.raises((SystemExit, ValueError)):
        train_net(*start, "MODEL.WEIGHTS", tmp_path / "wrong.pth")
    train_net(*start, "MODEL.WEIGHTS", weights)
    assert (folder / "results.json").is_file()


# ---------------------------------------------------------------- OUTPUT_DIR of another run


@pytest.fixture
def earlier(start, folder):
    """A finished run and its folder's contents."""
    train_net(*start)
    # Handlers of that run are closed by now in reality: it was another process.
    import logging

    for name in ("detectron2", "fvcore", "cdgcnet", "cdgc"):
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    return contents(folder)


def test_a_run_leaves_config_metrics_results_and_weights(earlier):
    assert {"config.yaml", "metrics.json", "results.json", "model_final.pth"} <= earlier.keys()


def test_a_second_run_into_the_folder_is_refused(start, folder, earlier):
    message = refused(*start)
    assert str(folder) in message and "--resume" in message
    assert contents(folder) == earlier


def test_resume_with_another_config_is_refused(start, folder, earlier):
    message = refused("--resume", *start, "SOLVER.BASE_LR", "0.5", "MODEL.CDGC.CHANNELS", "16")
    assert "SOLVER.BASE_LR: 0.02 there, 0.5 now" in message
    assert "MODEL.CDGC.CHANNELS: 8 there, 16 now" in message
    assert f"--config-file {folder / 'config.yaml'}" in message
    assert contents(folder) == earlier


def test_resume_with_another_list_is_refused(start, folder, earlier):
    message = refused("--resume", *start, "INPUT.CROP.SIZE", "[25, 25]")
    assert "INPUT.CROP.SIZE: [33, 33] there, [25, 25] now" in message


def test_sets_of_as_many_other_classes_are_refused(start, folder):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from cdgcnet.data.datasets import catalog, cityscapes

    names = [*cityscapes.NAMES[:-1], "unicycle"]
    catalog.register("other_val", list, classes=names, colors=cityscapes.COLORS)
    try:
        message = refused(*start, "DATASETS.TEST", "('other_val',)")
    finally:
        DatasetCatalog.remove("other_val")
        MetadataCatalog.remove("other_val")
    assert "DATASETS.TEST other_val and DATASETS.TRAIN cdgc_cityscapes_train" in message
    assert "class 18 is 'unicycle' in the first and 'bicycle' in the second" in message


@pytest.mark.parametrize("file", ["last_checkpoint", "model_0000001.pth"])
def test_a_folder_with_traces_of_a_run_is_refused(start, folder, file):
    folder.mkdir()
    (folder / file).write_text("of another tool")
    for arguments in (start, ["--resume", *start]):
        message = refused(*arguments)
        assert file in message
        assert contents(folder) == {file: b"of another tool"}


def test_a_folder_with_other_files_may_be_used(start, folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    train_net(*start)
    assert (folder / "notes.txt").read_text() == "mine"


def test_resume_with_the_same_config_continues(run_yaml, folder):
    arguments = ["--config-file", run_yaml, "OUTPUT_DIR", folder]
    train_net(*arguments)
    for name in ("model_final.pth", "results.json"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    # Free keys may differ: loader processes, how often is saved and evaluated. The weights that
    # the run started from are in its checkpoints; their file need not exist any more.
    free = ("DATALOADER.NUM_WORKERS", "1", "TEST.EVAL_PERIOD", "1", "MODEL.WEIGHTS", "gone.pth")
    before = load_cfg(str(folder / "config.yaml")).MODEL
    train_net("--resume", *arguments, *free, "MODEL.TIMM.PRETRAINED", "timm.pth")
    after = load_cfg(str(folder / "config.yaml")).MODEL
    assert after.WEIGHTS == before.WEIGHTS != "gone.pth"
    assert after.TIMM.PRETRAINED == before.TIMM.PRETRAINED == ""
    log = (folder / "log.txt").read_text("utf-8")
    assert "MODEL.WEIGHTS gone.pth is not read" in log
    assert "MODEL.TIMM.PRETRAINED timm.pth is not read" in log
    assert (folder / "model_final.pth").is_file() and (folder / "results.json").is_file()


def test_resume_in_an_empty_folder_starts(start, folder):
    train_net("--resume", *start)
    assert (folder / "results.json").is_file()


# ---------------------------------------------------------------- --eval-only


def test_eval_only_without_weights_is_refused(start, folder):
    message = refused("--eval-only", *start)
    assert "MODEL.WEIGHTS" in message and "--resume" in message
    assert not folder.exists()


def test_eval_only_resume_without_a_checkpoint_is_refused(start, folder):
    # Random weights must never be scored as if they were a run's.
    message = refused("--eval-only", "--resume", *start)
    assert str(folder) in message or "MODEL.WEIGHTS" in message
    assert not (folder / "results.json").exists()


def test_eval_only_of_a_bare_backbone_is_refused(start, tmp_path, weights):
    state = torch.load(weights, weights_only=True)["model"]
    backbone = {k: v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    message = refused("--eval-only", *start, "MODEL.WEIGHTS", tmp_path / "backbone.pth")
    assert "backbone.pth" in message and "backbone only" in message


TASKS = {"sem_seg", "sem_seg_coarse", "sem_seg_oracle", "graph"}


def test_eval_only_in_the_folder_of_a_training_leaves_the_training_alone(start, folder, earlier):
    weights = ["MODEL.WEIGHTS", folder / "model_final.pth", "INPUT.MIN_SIZE_TEST", "48"]
    train_net("--eval-only", *start, *weights)
    train_net("--eval-only", *start, *weights)
    after = contents(folder)
    for name in earlier.keys() - {"log.txt"}:
        assert after[name] == earlier[name], name
    for number in (1, 2):
        assert (folder / f"evaluation-{number}" / "results.json").is_file()
        place = folder / f"evaluation-{number}"
        assert f"stays as it is: the evaluation goes to {place}" in (place / "log.txt").read_text()


def test_eval_only_reproduces_the_runs_numbers(start, folder, earlier):
    returned = train_net("--eval-only", "--resume", *start)
    assert set(returned) == TASKS
    now = json.loads((folder / "evaluation-1" / "results.json").read_text())
    assert now == json.loads(earlier["results.json"])


def test_eval_only_needs_no_training_set_and_keeps_its_config(start, folder, weights):
    arguments = ["DATASETS.TRAIN", "('gone',)", "MODEL.WEIGHTS", weights]
    train_net("--eval-only", *start, *arguments)
    assert (folder / "results.json").is_file()
    assert "gone" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("overrides", ONLY_IN_TRAINING, ids=["GPU", "two processes"])
def test_a_run_of_another_machine_is_evaluated(start, run_yaml, folder, tmp_path, overrides):
    cfg = load_cfg(str(run_yaml), overrides)
    weights, config = tmp_path / "model_final.pth", tmp_path / "config.yaml"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    cfg.MODEL.DEVICE = "cuda"
    config.write_text(cfg.dump(), encoding="utf-8")
    here = ["OUTPUT_DIR", folder, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
    assert "sem_seg" in train_net("--config-file", config, "--eval-only", *here)
    assert "in short schedules" not in (folder / "log.txt").read_text()  # of dynamic nodes
    with pytest.raises(ValueError, match=r"^SOLVER\..* is .*; expected"):
        Trainer(load_cfg(str(config), ["MODEL.DEVICE", "cpu"]))


# ---------------------------------------------------------------- as the shell sees it


def shell(*argv) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("mistake", ["wrong value", "missing data"])
def test_exit_code_and_message_in_the_shell(start, tmp_path, monkeypatch, mistake):
    if mistake == "missing data":
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nowhere"))
        done = shell(*start)
        word = str(tmp_path / "nowhere" / "cityscapes")
    else:
        done = shell(*start, "MODEL.CDGC.EDGES", "blunt")
        word = "MODEL.CDGC.EDGES is 'blunt'"
    assert done.returncode == 1
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_in_the_shell_succeeds(start, folder):
    done = shell(*start)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "mean (mIoU)" in done.stdout
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == TASKS


def test_help_names_the_options():
    done = shell("--help")
    assert done.returncode == 0
    for option in ("--config-file", "--eval-only", "--resume", "--num-gpus", "--num-machines"):
        assert option in done.stdout
