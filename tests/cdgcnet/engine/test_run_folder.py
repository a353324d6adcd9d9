"""A run's folder after kills, full disks, damaged files and wrong commands: nothing is lost."""

import argparse
import errno
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cdgcnet import Trainer
from cdgcnet.cli import train
from cdgcnet.engine import run_lock
from cdgcnet.engine.defaults import run, setup
from cdgcnet.engine.run_folder import RunFolder
from cdgcnet.engine.run_lock import check_free, hold_folder

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("run_data", "clean_logging")


def parsed(argv) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_run_arguments(parser)
    parser.add_argument("--eval-only", action="store_true")
    return parser.parse_args([str(a) for a in argv])


def train_net(*argv) -> dict:
    """What ``train_net.py ARGV`` does, in this process."""
    args = parsed(argv)
    return run(setup(args), eval_only=args.eval_only, resume=args.resume)


def refused(*argv) -> str:
    with pytest.raises((ValueError, OSError)) as caught:
        train_net(*argv)
    return str(caught.value)


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the log."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "log.txt")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """Filled by the first test: a finished run of four iterations, with two checkpoints."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def start(run_yaml, tmp_path):
    return ["--config-file", run_yaml, "OUTPUT_DIR", tmp_path / "run"]


@pytest.fixture
def folder(tmp_path, start, finished_run):
    """A copy of the finished run."""
    if not finished_run.exists():
        train_net(*start, "OUTPUT_DIR", finished_run)
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def interrupted(folder):
    """The run as it was when it had saved its first checkpoint, after two iterations."""
    for name in ("model_final.pth", "model_0000003.pth", "model_best.pth", "results.json"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------- which checkpoint


def damage_nothing(folder):
    return "model_final.pth"


def remove_tag(folder):
    (folder / "last_checkpoint").unlink()
    return "model_final.pth"


def empty_tag(folder):  # killed while it was written
    (folder / "last_checkpoint").write_text("")
    return "model_final.pth"


def binary_tag(folder):
    (folder / "last_checkpoint").write_bytes(b"\xff\xfe\0")
    return "model_final.pth"


def dangling_tag(folder):
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    return "model_final.pth"


def tag_outside(folder):
    (folder / "last_checkpoint").write_text("../../elsewhere/model_0000001.pth")
    return "model_0000001.pth"  # only the name counts


def older_tag(folder):  # the user's way back
    (folder / "last_checkpoint").write_text("model_0000001.pth")
    return "model_0000001.pth"


def truncated_final(folder):
    cut(folder / "model_final.pth")
    return "model_0000003.pth"


def empty_final(folder):
    (folder / "model_final.pth").write_bytes(b"")
    return "model_0000003.pth"


def flipped_final_and_truncated_last(folder):
    flip_a_bit(folder / "model_final.pth")
    cut(folder / "model_0000003.pth")
    return "model_0000001.pth"


def weights_without_a_training(folder):
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    torch.save({"model": state}, folder / "model_final.pth")
    return "model_0000003.pth"


def unfinished_temporary_file(folder):
    (folder / "model_final.pth").unlink()
    (folder / "model_final.4711.part.pth").write_bytes(b"half")
    return "model_0000003.pth"


DAMAGES = (
    damage_nothing,
    remove_tag,
    empty_tag,
    binary_tag,
    dangling_tag,
    tag_outside,
    older_tag,
    truncated_final,
    empty_final,
    flipped_final_and_truncated_last,
    weights_without_a_training,
    unfinished_temporary_file,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_whole_checkpoint_is_found(folder, damage, caplog):
    expected = damage(folder)
    with caplog.at_level(logging.WARNING):
        newest = RunFolder(folder).newest_checkpoint(say=True)
    assert newest.path.name == expected
    assert newest.iterations == {"0000001": 2}.get(expected[6:13], 4)
    messages = [r.getMessage() for r in caplog.records]
    if damage in (damage_nothing, tag_outside, older_tag):
        assert messages == []
    else:
        [line] = messages
        assert "\n" not in line and f"Using {expected}, the newest intact checkpoint" in line


@pytest.mark.parametrize("damage", [remove_tag, empty_tag, dangling_tag, truncated_final])
def test_resume_after_damage_repeats_the_undisturbed_run(start, folder, interrupted, damage):
    if damage is truncated_final:
        shutil.copy(folder / "model_0000001.pth", folder / "model_0000002.pth")
        cut(folder / "model_0000002.pth")
        (folder / "last_checkpoint").write_text("model_0000002.pth")
    else:
        damage(folder)
    first = (folder / "model_0000001.pth").read_bytes()
    train_net("--resume", *start)
    assert (folder / "model_0000001.pth").read_bytes() == first
    assert "Starting training from iteration 2" in log_of(folder)


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_run_killed_before_its_final_weights_gets_them(start, folder, evaluated):
    final = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    if not evaluated:
        (folder / "results.json").unlink()
    train_net("--resume", *start)
    found = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert found.keys() == final.keys() and all(found[k].equal(final[k]) for k in final)
    assert (folder / "results.json").is_file()


def test_a_folder_of_damaged_checkpoints_is_refused_and_left_alone(start, folder):
    for path in folder.glob("*.pth"):
        cut(path)
    before = contents(folder)
    message = refused("--resume", *start)
    assert "model_0000003.pth is not written completely" in message
    assert "Move these files away" in message
    assert contents(folder) == before


# ---------------------------------------------------------------- config and metrics


@pytest.mark.parametrize(
    "text", ["MODEL:\n  CDGC: {NODES: [", "MODEL", "\0", "- 1\n- 2\n", "!!python/name:os.system"]
)
def test_a_config_that_is_not_whole_is_named(start, folder, text):
    (folder / "config.yaml").write_text(text)
    message = refused("--resume", *start)
    assert f"{folder / 'config.yaml'}: not a readable config" in message
    assert "log.txt" in message


def test_checkpoints_without_a_config_are_refused(start, folder):
    (folder / "config.yaml").unlink()
    assert "no config.yaml" in refused("--resume", *start)


def test_half_a_line_of_metrics_is_removed(start, interrupted):
    path = interrupted / "metrics.json"
    path.write_text('{"iteration": 0}\n{"iteration": 1}\n{"iteration": 2, "total_lo')
    train_net("--resume", *start)
    lines = [json.loads(line) for line in path.open()]
    assert lines[:2] == [{"iteration": 0}, {"iteration": 1}]
    assert lines[2]["iteration"] == 3
    assert (
        "lines removed: 1, of iterations that are repeated (2 and later) or not complete"
        in log_of(interrupted)
    )


def test_each_iteration_stands_once_in_the_metrics_of_a_resumed_run(start, folder):
    # Everything after the first checkpoint is repeated; the finished run is the reference.
    path = folder / "metrics.json"
    finished = path.read_bytes().splitlines()
    path.write_bytes(b'{"iteration": 1, "lr": 0.5}\n' + path.read_bytes())
    for name in ("model_final.pth", "model_0000003.pth", "model_best.pth", "results.json"):
        (folder / name).unlink()
    train_net("--resume", *start)

    def without_times(lines) -> list[dict]:
        values = [json.loads(line) for line in lines]
        return [{k: v for k, v in x.items() if not k.endswith(("time", "seconds"))} for x in values]

    first, *others = path.read_bytes().splitlines()
    assert first == b'{"iteration": 1, "lr": 0.5}'
    assert without_times(others) == without_times(finished)
    assert not (folder / "metrics.1.json").exists()


def test_metrics_that_may_not_be_repeated_are_kept(start, folder):
    before = (folder / "metrics.json").read_bytes()
    assert b'"iteration": 4' in before  # the evaluation at the end, which comes later now
    train_net("--resume", *start, "SOLVER.MAX_ITER", "6", "SOLVER.EXTEND_SCHEDULE", "True")
    assert (folder / "metrics.1.json").read_bytes() == before
    iterations = [json.loads(line)["iteration"] for line in (folder / "metrics.json").open()]
    assert iterations == sorted(set(iterations)) and iterations[-1] == 6


def test_damaged_best_weights_are_named(start, interrupted):
    (interrupted / "model_best.pth").write_bytes(b"PK\x03\x04")
    message = refused("--resume", *start)
    assert f"{interrupted / 'model_best.pth'}: not the best weights of this run" in message
    (interrupted / "model_best.pth").unlink()
    train_net("--resume", *start)
    assert (interrupted / "model_best.pth").is_file()


def test_an_evaluation_stores_its_config_beside_its_results(start, folder, tmp_path):
    weights = folder / "model_final.pth"
    elsewhere = [*start[:2], "--eval-only", "OUTPUT_DIR", tmp_path / "b", "MODEL.WEIGHTS", weights]
    training = (folder / "config.yaml").read_bytes()
    train_net(*start[:2], "--eval-only", "OUTPUT_DIR", folder, "MODEL.WEIGHTS", weights)
    assert (folder / "config.yaml").read_bytes() == training
    assert (folder / "evaluation-1" / "config.yaml").is_file()
    train_net(*elsewhere)
    first = (tmp_path / "b" / "config.yaml").read_bytes()
    assert f"WEIGHTS: {weights}".encode() in first
    train_net(*elsewhere)
    assert not (tmp_path / "b" / "config.1.yaml").exists()  # the same evaluation
    train_net(*elsewhere, "TEST.WORST_IMAGES", "1")
    assert (tmp_path / "b" / "config.1.yaml").read_bytes() == first
    train_net(*start[:2], "OUTPUT_DIR", tmp_path / "b")  # a training run may use the folder
    assert (tmp_path / "b" / "config.2.yaml").is_file()


def test_warnings_before_the_start_are_in_the_log_once(start, tmp_path, capsys):
    train_net(*start)
    line = "7 of 19 classes never occur (it cannot be learned)"
    assert log_of(tmp_path / "run").count(line) == 1
    assert capsys.readouterr().out.count(line) == 1


def test_metrics_of_a_resumed_run_are_smoothed_over_what_was_before(run_cfg, tmp_path):
    # Stopped after 35 of 40 iterations, with a checkpoint after 30. The medians at the end are
    # over the last 20 iterations, of which ten were before the checkpoint.
    keys = ["SOLVER.MAX_ITER", "40", "SOLVER.CHECKPOINT_PERIOD", "30", "MODEL.CDGC.CONTEXT", "none"]
    run_cfg.merge_from_list(keys)

    def metrics(folder: Path) -> dict[int, dict]:
        lines = [json.loads(line) for line in (folder / "metrics.json").open()]
        return {
            x["iteration"]: {k: v for k, v in x.items() if "time" not in k and "seconds" not in k}
            for x in lines
            if "total_loss" in x
        }

    def trained(name: str, resume: bool, stop: int = 40) -> Path:
        cfg = run_cfg.clone()
        cfg.OUTPUT_DIR = str(tmp_path / name)
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        step = trainer._trainer.run_step

        def run_step():
            if trainer.iter == stop:
                raise KeyboardInterrupt
            step()

        trainer._trainer.run_step = run_step
        if stop < 40:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
        else:
            trainer.train()
        return tmp_path / name

    whole = metrics(trained("whole", resume=False))
    trained("cut", resume=False, stop=35)
    resumed = metrics(trained("cut", resume=True))
    assert whole.keys() == {19, 39}
    assert resumed[39] == whole[39]


# ---------------------------------------------------------------- starts


def test_a_start_that_fails_in_its_first_step_blocks_nobody(start, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run_step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_net(*start)
    assert (folder / "config.yaml").is_file()
    (folder / "metrics.json").write_text('{"iteration": 0}\n')
    train_net(*start, "SOLVER.BASE_LR", "0.03")  # another config, too
    assert (folder / "results.json").is_file()
    assert (folder / "metrics.1.json").read_text() == '{"iteration": 0}\n'


def test_output_dir_is_expanded(start, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train_net(*start, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", "~/runs/mine")
    assert (tmp_path / "runs" / "mine" / "results.json").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("value", ["", " ", "~nobody-of-this-name/x", "a" * 5000, "/proc/x"])
def test_output_dir_that_is_no_folder_is_refused(start, tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    message = refused(*start, "OUTPUT_DIR", value)
    assert "OUTPUT_DIR" in message and len(message) < 400
    assert list(tmp_path.iterdir()) == []


def test_output_dir_below_a_file_is_refused(start, tmp_path):
    (tmp_path / "file").write_text("mine")
    message = refused(*start, "OUTPUT_DIR", tmp_path / "file" / "run")
    assert f"{tmp_path / 'file'} is a file" in message


@pytest.mark.parametrize(
    "keys",
    [
        ["TEST.AUG.SCALES", "[1e30]"],
        ["TEST.AUG.SCALES", "[float('nan')]"],
        ["DATASETS.TEST", "('cdgc_cityscapes_val', 'cdgc_cityscapes_val')"],
        ["TEST.BOUNDARY_RATIO", "2"],
        ["TEST.WORST_IMAGES", "-1"],
    ],
)
def test_what_would_fail_after_the_training_is_refused_at_the_start(start, tmp_path, keys):
    assert keys[0] in refused(*start, *keys)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- finished runs


def test_resume_of_a_finished_run_says_so_and_changes_nothing(start, folder):
    before = contents(folder)
    results = train_net("--resume", *start)
    assert results["sem_seg"]["mIoU"] == json.loads(before["results.json"])["sem_seg"]["mIoU"]
    assert math.isnan(results["sem_seg"]["ACC-wall"])  # null in the file
    assert "nothing is left to do" in log_of(folder)
    assert "SOLVER.EXTEND_SCHEDULE True with a larger SOLVER.MAX_ITER" in log_of(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("loss", ["no results", "half the results", "no TTA"])
def test_resume_makes_up_for_an_evaluation_that_was_interrupted(start, folder, loss):
    expected = json.loads((folder / "results.json").read_text())
    weights = (folder / "model_final.pth").read_bytes()
    keys = ["TEST.AUG.ENABLED", "True"] if loss == "no TTA" else []
    if loss == "no results":
        (folder / "results.json").unlink()
    if loss == "half the results":
        cut(folder / "results.json")
    train_net("--resume", *start, *keys)
    now = json.loads((folder / "results.json").read_text())
    assert {k: v for k, v in now.items() if not k.endswith("_TTA")} == expected
    assert ("sem_seg_TTA" in now) == (loss == "no TTA")
    assert (folder / "model_final.pth").read_bytes() == weights
    assert "only its evaluation is left" in log_of(folder)


def test_resume_evaluates_again_as_it_is_asked_to(start, folder):
    before = json.loads((folder / "results.json").read_text())
    train_net("--resume", *start, "TEST.BOUNDARY_RATIO", "0")
    assert "only its evaluation is left" in log_of(folder)
    now = json.loads((folder / "results.json").read_text())
    assert before["sem_seg"].keys() - now["sem_seg"].keys()  # the scores at boundaries
    assert json.loads((folder / "results.1.json").read_text()) == before
    train_net("--resume", *start, "TEST.BOUNDARY_RATIO", "0", "TEST.AUG.SCALES", "[0.5]")
    assert "nothing is left to do" in log_of(folder)  # no test-time augmentation was asked for


def test_an_evaluation_that_was_interrupted_after_its_first_scores_goes_on(folder):
    place = folder / "evaluation-1"
    (place / "inference" / "val_TTA" / "finished").mkdir(parents=True)
    (place / "results.json").write_text("{}")
    assert RunFolder(folder).evaluation_folder(resume=True) == place
    assert RunFolder(folder).evaluation_folder(resume=False) == folder / "evaluation-2"
    (place / "inference" / "val_TTA" / "finished").rmdir()
    assert RunFolder(folder).evaluation_folder(resume=True) == folder / "evaluation-2"


def test_a_longer_schedule_needs_a_word(start, folder):
    before = contents(folder)
    message = refused("--resume", *start, "SOLVER.MAX_ITER", "6")
    assert f"--config-file {folder / 'config.yaml'}" in message  # continues as planned
    assert "or add SOLVER.EXTEND_SCHEDULE True" in message
    assert "learning rates then differ" in message
    shorter = refused("--resume", *start, "SOLVER.MAX_ITER", "2", "SOLVER.EXTEND_SCHEDULE", "True")
    assert "SOLVER.MAX_ITER: 4 there, 2 now" in shorter
    assert contents(folder) == before


def rates(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").open()]
    return {x["iteration"]: x["lr"] for x in lines if "lr" in x}


@pytest.mark.parametrize("scheduler", ["WarmupPolyLR", "WarmupCosineLR"])
def test_a_schedule_can_be_extended(start, tmp_path, scheduler):
    folder = tmp_path / "run"
    start += ["SOLVER.LR_SCHEDULER_NAME", scheduler]
    train_net(*start)
    before = contents(folder)
    longer = ["SOLVER.MAX_ITER", "6", "SOLVER.EXTEND_SCHEDULE", "True"]
    train_net("--resume", *start, *longer, "SOLVER.CHECKPOINT_PERIOD", "1")
    # The shorter run's weights and scores are kept.
    assert (folder / "model_0000003.pth").read_bytes() == before["model_0000003.pth"]
    assert (folder / "results.1.json").read_bytes() == before["results.json"]
    [line] = [line for line in log_of(folder).splitlines() if "planned for 4" in line]
    assert "the rate jumps from" in line and "not that of a run planned for 6" in line

    # Every iteration has the rate of a run of six iterations: 4, saved with the rate of the next,
    # and 5 from the log.
    whole = tmp_path / "whole"
    train_net(*start, "SOLVER.MAX_ITER", "6", "OUTPUT_DIR", whole, "SOLVER.CHECKPOINT_PERIOD", "1")
    assert rates(folder)[5] == rates(whole)[5] > 0
    for path in (folder, whole):
        trainer = torch.load(path / "model_0000004.pth", weights_only=True)["trainer"]
        found = {group["lr"] for group in trainer["_trainer"]["optimizer"]["param_groups"]}
        assert list(found) == [pytest.approx(rates(whole)[5])]

    # From now on it is a run of six iterations.
    train_net("--resume", *start, "SOLVER.MAX_ITER", "6")
    assert "nothing is left to do" in log_of(folder)


def test_the_first_iteration_of_an_extended_schedule_has_its_rate(start, folder):
    # Not the rate 0 that the shorter schedule ended with: 0.02 * (1 - 4 / 5) ** 0.9 = 0.0047.
    train_net("--resume", *start, "SOLVER.MAX_ITER", "5", "SOLVER.EXTEND_SCHEDULE", "True")
    assert rates(folder)[4] == pytest.approx(0.02 * 0.2**0.9)


# ---------------------------------------------------------------- scores before everything else


def test_scores_are_written_before_test_time_augmentation(start, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError("does not fit")

    monkeypatch.setattr(Trainer, "test_with_TTA", fail)
    with pytest.raises(MemoryError):
        train_net(*start, "SOLVER.MAX_ITER", "1", "TEST.AUG.ENABLED", "True")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["sem_seg"]["mIoU"] >= 0


def test_scores_are_written_before_pictures(start, tmp_path, monkeypatch):
    from cdgcnet.visualization import confusion_matrix

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(confusion_matrix, "draw_confusion_matrix", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_net(*start, "SOLVER.MAX_ITER", "1", "TEST.PICTURES", "True")
    assert json.loads((tmp_path / "run" / "results.json").read_text())["sem_seg"]["mIoU"] >= 0


def test_scores_of_one_dataset_survive_the_failure_of_the_next(start, tmp_path, monkeypatch):
    from cdgcnet.evaluation import testing

    sets = ["DATASETS.TEST", "('cdgc_cityscapes_val', 'cdgc_cityscapes_train')"]
    loop = testing.inference_on_dataset

    def fail(model, loader, evaluator):
        if len(loader) == 6:  # the training set
            raise MemoryError("does not fit")
        return loop(model, loader, evaluator)

    monkeypatch.setattr(testing, "inference_on_dataset", fail)
    with pytest.raises(MemoryError):
        train_net(*start, "SOLVER.MAX_ITER", "1", *sets)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results.keys() == {"cdgc_cityscapes_val"}


# ---------------------------------------------------------------- a full disk, a kill


def fill_the_disk(monkeypatch, after: int) -> None:
    """Let all checkpoints but the first ones fail as torch.save does on a full disk."""
    save = torch.save
    saved = []

    def full(state, file, *args, **kwargs):
        saved.append(None)
        if len(saved) <= after:
            return save(state, file, *args, **kwargs)
        file.write(b"half a checkpoint")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("enforce fail at inline_container.cc")  # noqa: B904

    monkeypatch.setattr(torch, "save", full)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_full_disk_leaves_whole_files_and_its_advice_works(
    start, tmp_path, monkeypatch, capsys, after
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_the_disk(patch, after)
        message = refused(*start)
    assert (
        "the disk is full: free some space and run the same command again with --resume" in message
    )
    assert ".pth" in message
    assert "Exception during training" not in capsys.readouterr().out
    assert len(list(folder.glob("*.pth"))) == after  # none is cut off, none is left unfinished
    assert after == 0 or RunFolder(folder).newest_checkpoint().iterations == 2 * after
    train_net("--resume", *start)
    assert (folder / "results.json").is_file()


def test_a_kill_while_a_checkpoint_is_saved_leaves_the_one_before(start, folder):
    # SIGKILL leaves the temporary file; the next start removes it.
    (folder / "model_0000005.99.part.pth").write_bytes(b"half")
    assert RunFolder(folder).newest_checkpoint().path.name == "model_final.pth"
    (folder / "results.json").unlink()
    train_net("--resume", *start)
    assert not list(folder.glob("*.part.pth"))


# ---------------------------------------------------------------- one run at a time

HOLD = """
import sys, time
from pathlib import Path
from cdgcnet.engine.run_lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_while_the_first_lives(start, tmp_path, holder):
    for arguments in (start, ["--resume", *start]):
        message = refused(*arguments)
        assert f"is in use by process {holder.pid}" in message
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["run.lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    train_net(*start, "SOLVER.MAX_ITER", "1")  # a dead process holds nothing
    assert not (tmp_path / "run" / "run.lock").exists()


def test_a_run_on_another_host_counts_by_its_age(tmp_path):
    lock = tmp_path / "run.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "today"}))
    with pytest.raises(BlockingIOError, match="process 1 on elsewhere, started today"):
        check_free(tmp_path)
    with pytest.raises(BlockingIOError), hold_folder(tmp_path):
        pass
    old = time.time() - run_lock.DEAD_AFTER - 1
    os.utime(lock, (old, old))
    with hold_folder(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_an_unreadable_lock_of_a_dead_process_is_released(tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content)
    check_free(tmp_path)
    with hold_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.02)
    with hold_folder(tmp_path):
        os.utime(tmp_path / "run.lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "run.lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_process_cannot_hold_a_folder_twice(tmp_path):
    with hold_folder(tmp_path):
        with (
            pytest.raises(BlockingIOError, match="another run of this process"),
            hold_folder(tmp_path),
        ):
            pass
        assert (tmp_path / "run.lock").exists()


# ---------------------------------------------------------------- torchrun


@pytest.mark.slow
def test_processes_of_torchrun_are_one_run(start, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run"]
    command += ["--standalone", "--nproc-per-node", "2", str(ROOT / "train_net.py")]
    done = subprocess.run(
        [*command, *map(str, start)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.json").open()]
    assert len([x for x in lines if "total_loss" in x]) == 1  # not one per process
    assert sorted(p.name for p in folder.glob("results*.json")) == ["results.json"]
    again = subprocess.run(
        [*command, *map(str, start)], capture_output=True, text=True, timeout=300, check=False
    )
    assert again.returncode != 0
    assert again.stderr.count("holds another run") == 1  # reported once
