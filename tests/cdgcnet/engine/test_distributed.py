"""Several processes are one run: they agree, score as one, survive kills and end together."""

import argparse
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from cdgcnet.cli import launch
from cdgcnet.cli.errors import UsageError
from cdgcnet.engine import distributed, run_lock
from cdgcnet.engine.distributed import check_agreement, is_dead_worker, join_torchrun_processes
from cdgcnet.engine.run_facts import run_facts
from cdgcnet.engine.run_lock import check_free, hold_folder

ROOT = Path(__file__).resolve().parents[3]
# Kills of one job; `make chaos` asks for 20.
KILLS = int(os.environ.get("CDGC_KILLS", "2"))

# What train_net.py does, with trouble in process 1.
DRIVER = """
import os, random, signal, sys, threading, time
from cdgcnet import Trainer
from cdgcnet.cli.main import run_tool

trouble, *rest = sys.argv[1:]
sys.argv = ["train_net.py", *rest]
restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if os.environ["RANK"] == "1":
    run_step = Trainer.run_step
    kill_at = random.Random(restarts).uniform(0, 8)

    def step(self):
        if trouble == "OSError" and self.iter + 1 == self.max_iter:
            raise OSError("scene.png is gone")
        if trouble == "KeyError":
            raise KeyError("a fault")
        if trouble.isdigit() and restarts < int(trouble):
            if self.iter >= int(kill_at):
                # Now, in the middle of a step, or while a checkpoint is written.
                delay = 0.2 * (kill_at % 1)
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            if self.iter + 1 == self.max_iter:
                time.sleep(60)
        run_step(self)

    Trainer.run_step = step
    if trouble == "config":
        sys.argv += ["SOLVER.BASE_LR", "0.5"]
sys.exit(run_tool("eval" if trouble == "eval" else "train"))
"""


@pytest.fixture
def torchrun(run_data, run_yaml, tmp_path):
    """``torchrun(processes, trouble, *argv)``: the finished process."""
    driver = tmp_path / "train_net.py"
    driver.write_text(DRIVER)

    def call(processes, trouble, *argv, restarts=0):
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", processes, "--max-restarts", restarts, driver, trouble]
        command += ["--config-file", run_yaml, *argv]
        return subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            text=True,
            timeout=300 + 60 * restarts,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    return call


def finished(done) -> None:
    assert done.returncode == 0, done.stderr[-3000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


# ---------------------------------------------------------------- real processes


@pytest.mark.slow
def test_killed_workers_continue_to_the_undisturbed_result(torchrun, tmp_path):
    keys = ["SOLVER.IMS_PER_BATCH", 6, "SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 2]
    finished(torchrun(2, "none", *keys, "OUTPUT_DIR", tmp_path / "whole"))
    killed = [*keys, "OUTPUT_DIR", tmp_path / "killed"]
    done = torchrun(2, KILLS, "--resume", *killed, restarts=KILLS)
    finished(done)
    assert done.stderr.count("exitcode: -9") >= KILLS
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    whole, again = (
        {
            name: value
            for line in (tmp_path / run / "metrics.json").open()
            if (entry := json.loads(line))["iteration"] == 7
            for name, value in entry.items()
            if "time" not in name and "seconds" not in name
        }
        for run in ("whole", "killed")
    )
    assert again == whole
    assert "total_loss" in whole

    # The scores of the weights do not depend on the number of processes.
    weights_file = ["MODEL.WEIGHTS", tmp_path / "whole" / "model_final.pth"]
    scores = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        keys = [*weights_file, "TEST.AUG.ENABLED", True, "OUTPUT_DIR", folder]
        finished(torchrun(processes, "eval", *keys))
        scores.append((folder / "results.json").read_bytes())
        assert [p.name for p in folder.glob("results*")] == ["results.json"]
    assert b"sem_seg_TTA" in scores[0]
    assert scores[0] == scores[1] == scores[2]

    # Three processes continue what two have begun.
    (tmp_path / "killed" / "last_checkpoint").write_text("model_0000003.pth")
    for name in ("results.json", "model_final.pth", "model_0000005.pth", "model_0000007.pth"):
        (tmp_path / "killed" / name).unlink(missing_ok=True)
    finished(torchrun(3, "none", "--resume", *killed))
    log = (tmp_path / "killed" / "log.txt").read_text()
    assert log.count("of a run with 2 processes; now there are 3. The batch of 6 images") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("config", "the processes of this run differ in SOLVER.BASE_LR: 0.02 in process 0 on "),
        ("OSError", "train_net.py: error: scene.png is gone (reported by process 1 of 2 on "),
        ("KeyError", "KeyError: 'a fault'"),
    ],
)
def test_an_error_of_one_process_ends_all(torchrun, tmp_path, trouble, message):
    done = torchrun(2, trouble, "OUTPUT_DIR", tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count(message) == 1
    assert done.stderr.count("train_net.py: error:") == (trouble != "KeyError")


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["--num-gpus", "2"], ValueError, "no CUDA GPU; start processes on CPUs with torchrun"),
        (
            ["--num-machines", "2", "--dist-url", "tcp://a:1"],
            ValueError,
            "--num-gpus 1 --num-machines 2: this machine has no CUDA GPU",
        ),
        (["--num-machines", "2"], UsageError, "--dist-url tcp://HOST:PORT"),
        (["--machine-rank", "1"], UsageError, "expected less than --num-machines, which is 1"),
        (["--dist-url", "a:1"], UsageError, "--dist-url a:1: expected tcp://HOST:PORT"),
    ],
)
def test_wrong_combinations_without_a_gpu(argv, error, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    parser = argparse.ArgumentParser()
    launch.add_launch_arguments(parser)
    with pytest.raises(error) as caught:
        launch.launch_processes(print, parser.parse_args(argv))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def environment(monkeypatch):
    """That of process 0 of 3 on the first of several machines."""
    values = {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    values |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": distributed_port()}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


def distributed_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_missing_machines_end_in_one_line(environment):
    with pytest.raises(TimeoutError) as caught:
        join_torchrun_processes(timedelta(seconds=1))
    message = str(caught.value)
    assert "process 0 of 3 has not met the others at 127.0.0.1:" in message
    assert "after 1 seconds (--dist-timeout)" in message
    assert "\n" not in message


def test_missing_processes_are_named(environment):
    # As under torchrun's own store, which does not wait for the processes itself.
    store = torch.distributed.HashStore()
    store.set("started/1", "")
    environment.setattr(torch.distributed, "rendezvous", lambda *_, **__: [(store, 0, 3)])
    with pytest.raises(TimeoutError, match=r"1 of 3 processes have not started .*: rank 2; check"):
        join_torchrun_processes(timedelta(seconds=1))


def test_before_the_start_one_process_of_a_machine_reports(environment):
    assert distributed.may_report_error()
    environment.setenv("LOCAL_RANK", "1")
    assert not distributed.may_report_error()


# ---------------------------------------------------------------- workers of a data loader


class EndsItsProcess(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_recognized():
    with pytest.raises(RuntimeError) as caught:
        next(iter(torch.utils.data.DataLoader(EndsItsProcess(), num_workers=1)))
    assert is_dead_worker(caught.value)
    assert not is_dead_worker(RuntimeError("Caught RuntimeError in DataLoader worker process 0."))
    while_saving = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")
    assert not is_dead_worker(while_saving)
    while_saving.__context__ = caught.value
    assert is_dead_worker(while_saving)


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_recognized():
    def _try_get_data():  # the name of the function of torch's data loader
        raise ConnectionResetError("Connection reset by peer")

    with pytest.raises(ConnectionResetError) as caught:
        _try_get_data()
    assert is_dead_worker(caught.value)
    assert not is_dead_worker(ConnectionResetError("of something else"))


# ---------------------------------------------------------------- agreement


def gathered(monkeypatch, *others):
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, *(("node1", o) for o in others)])


def test_processes_that_agree_go_on(monkeypatch):
    gathered(monkeypatch, {"a": 1}, {"a": 1})
    check_agreement({"a": 1})


@pytest.mark.parametrize("other", [{"a": 1, "b": [3]}, {"a": 1}])
def test_what_differs_is_named(monkeypatch, other):
    gathered(monkeypatch, {"a": 1, "b": [2]}, other)
    with pytest.raises(
        ValueError, match=r"differ in b: \[2\] in process 0 on .* process 2 on node1"
    ):
        check_agreement({"a": 1, "b": [2]})


def test_long_values_are_cut(monkeypatch):
    gathered(monkeypatch, {"a": "y" * 999})
    with pytest.raises(ValueError) as caught:
        check_agreement({"a": "x" * 999})
    assert len(str(caught.value)) < 400


def test_facts_notice_another_file_and_not_another_folder(run_data, run_cfg, monkeypatch):
    from detectron2.data import DatasetCatalog

    args = argparse.Namespace(resume=False, eval_only=False)
    facts = run_facts(run_cfg, args)
    dicts = DatasetCatalog.get(run_cfg.DATASETS.TRAIN[0])
    elsewhere = [
        {k: str(v).replace("/leftImg8bit/", "/./leftImg8bit/") for k, v in d.items()} for d in dicts
    ]
    gone = [*dicts[1:], {**dicts[0], "file_name": dicts[0]["file_name"] + "x"}]
    name = f"the files of dataset {run_cfg.DATASETS.TRAIN[0]}"
    assert facts[name].startswith("6 images, digest of names and sizes ")
    get = DatasetCatalog.get
    for changed, same in ((elsewhere, True), (gone, False), (dicts[1:], False)):
        monkeypatch.setattr(
            DatasetCatalog, "get", lambda n, d=changed: d if "train" in n else get(n)
        )
        assert (run_facts(run_cfg, args) == facts) is same
        monkeypatch.undo()
        monkeypatch.setenv("DETECTRON2_DATASETS", str(run_data))


# ---------------------------------------------------------------- the lock of an elastic job


@pytest.mark.parametrize(
    ("job", "restarts", "free"),
    [("job-7", 1, True), ("job-7", 0, False), ("job-8", 1, False), ("none", 1, False)],
)
def test_a_restarted_job_may_take_its_folder_to_another_host(
    tmp_path, monkeypatch, job, restarts, free
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-7")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with hold_folder(tmp_path):
        content = (tmp_path / "run.lock").read_text()
    (tmp_path / "run.lock").write_text(content)  # its host is lost
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "another-host")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
    if free:
        check_free(tmp_path)
    else:
        with pytest.raises(BlockingIOError, match="in use by process"):
            check_free(tmp_path)
