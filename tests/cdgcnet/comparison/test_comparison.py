"""``cdgcnet compare`` from images to the table, and everything that a user can get wrong."""

import json
import os
import signal
import time

import pytest
import torch
from detectron2.modeling import build_model

from cdgcnet.cli.main import main
from cdgcnet.comparison import comparison, workers
from cdgcnet.comparison.records import load_records

SMALL = {
    "--shorter-side": 32,
    "--channels": 4,
    "--crop": 3,
    "--batch": 2,
    "--width": 8,
    "--steps": 4,
    "--precision": "fp32",
    "--jobs": 1,
    "--seeds": 2,
    "--context": "none",
}


@pytest.fixture
def compare(run_cfg, run_yaml, run_data, tmp_path):
    """``compare("--heads", "plain", …)``: the exit code of a small comparison on street scenes."""
    torch.manual_seed(0)
    state = build_model(run_cfg).backbone.state_dict()
    path = tmp_path / "backbone.pth"
    torch.save({"model": {f"backbone.{k}": v for k, v in state.items()}}, path)
    fixed = ["--config-file", str(run_yaml), "--weights", str(path), "--output", str(tmp_path)]

    small = [str(word) for pair in SMALL.items() for word in pair]

    def run(*words):
        return main(["compare", *fixed, *small, *map(str, words)])

    return run


@pytest.fixture
def in_process(monkeypatch):
    """Rows run in this process, one after the other; returns the list of rows that were run."""
    run = []

    def run_jobs(jobs, setting, parallel, deadline, on_steps):
        for job in jobs:
            run.append((job.row.label, job.seed))
            try:
                workers.run_job(job, setting, on_steps)
            except Exception as error:
                yield job, str(error)
            else:
                yield job, None

    monkeypatch.setattr(comparison, "run_jobs", run_jobs)
    return run


def test_a_whole_comparison(compare, in_process, tmp_path, capsys):
    assert compare("--heads", "plain,pixelwise,ocr,graph:EDGES=uniform") == 0
    out = capsys.readouterr().out
    assert "Features: 9 images, 4 of 64 channels" in out
    assert "8 of 8 rows are finished" in out
    # The verdict on the instrument comes before the table.
    assert out.index("the instrument") < out.index("pixelwise  ") or "sees context" in out
    records = load_records(tmp_path / "records")
    assert {(r.label, r.seed) for r in records} == set(in_process)
    [graph] = [r for r in records if r.kind == "graph" and r.seed == 1]
    assert graph.settings["MODEL.CDGC.EDGES"] == "uniform"
    assert graph.metrics.keys() >= {"sem_seg", "sem_seg_coarse", "graph"}
    assert graph.metadata.keys() == {"command", "commit", "versions", "hardware", "date"}
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| graph:EDGES=uniform |" in table

    # Nothing is repeated, and what is added continues.
    del in_process[:]
    assert compare("--heads", "plain,ocr") == 0
    assert in_process == []
    assert compare("--heads", "plain,non_local", "--seeds", "1") == 0
    assert in_process == [("non_local", 1)]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| graph:EDGES=uniform |" in table and "| non_local " in table
    assert table.count("| plain ") == 1

    # Rows of other settings would make another table.
    capsys.readouterr()
    assert compare("--heads", "plain", "--learning-rate", "0.5") == 1
    message = capsys.readouterr().err
    assert "learning_rate is" in message and "0.5 now; choose another --output" in message
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table


def test_rendering_needs_the_records_alone(compare, in_process, tmp_path, capsys):
    compare("--heads", "plain", "--seeds", "1")
    page = tmp_path / "page.md"
    page.write_text("<!-- compare records -->\n<!-- end of compare records -->\n", "utf-8")
    assert main(["compare", "--render", str(tmp_path / "records"), "--into", str(page)]) == 0
    assert "| plain " in page.read_text(encoding="utf-8")
    # What a run leaves that was killed while it wrote a record is no record.
    (tmp_path / "records" / "ocr-seed1.123.part.json").touch()
    assert compare("--heads", "plain", "--seeds", "1") == 0
    assert main(["compare", "--render", str(tmp_path / "records"), "--into", str(page)]) == 0
    assert main(["compare", "--render", str(tmp_path / "nothing")]) == 1
    assert "nothing holds no record" in capsys.readouterr().err


def test_a_failed_row_leaves_the_others(compare, in_process, monkeypatch, tmp_path, capsys):
    run_job = workers.run_job

    def fail_once(job, setting, progress):
        if job.row.label == "ocr":
            raise FloatingPointError("the loss is nan at step 3")
        run_job(job, setting, progress)

    monkeypatch.setattr(workers, "run_job", fail_once)
    assert compare("--heads", "plain,ocr,graph", "--seeds", "1") == 1
    captured = capsys.readouterr()
    assert "failed: ocr, seed 1: the loss is nan at step 3" in captured.err
    assert "2 of 3 rows are finished" in captured.out
    assert len(load_records(tmp_path / "records")) == 2


def test_a_holdout_leaves_the_test_set_unread(compare, in_process, tmp_path, run_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(run_data))
    read = []
    original = comparison.Plan.read.__func__

    def spy(cls, entries, extractor):
        read.extend(entry["file_name"] for entry in entries)
        return original(cls, entries, extractor)

    monkeypatch.setattr(comparison.Plan, "read", classmethod(spy))
    assert compare("--heads", "plain", "--seeds", "1", "--holdout", "0.5") == 0
    assert len(read) == 6 and all("/train/" in name for name in read)
    [record] = load_records(tmp_path / "holdout_0.5" / "records")  # a table of its own
    assert record.instrument["evaluated_on"] == "the held-out 0.5 of cdgc_cityscapes_train"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--heads", "plain,grap"], 1, "--heads grap: unknown head 'grap'"),
        (["--context", "psp"], 1, "--context psp: expected one of"),
        (["--crop", "9"], 1, "--crop 9: the smallest image has 5 nodes a side at stride 8"),
        (["--holdout", "1"], 2, "1: expected a share, 0 to below 1"),
        (["--time-budget", "0"], 2, "0: expected a number above 0"),
        (["--seeds", "0"], 2, "0: expected 1 or more"),
        (["--weights", "no.pth"], 1, "MODEL.WEIGHTS: there is no file"),
        (["--weights", ""], 2, "--weights is required"),
        (["--into", "page.md"], 2, "--into goes with --render"),
    ],
)
def test_wrong_arguments_end_before_any_row(compare, in_process, capsys, words, code, message):
    try:
        found = compare("--heads", "plain", *words)
    except SystemExit as stop:
        found = stop.code
    assert (found, in_process) == (code, [])
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_too_little_memory_is_known_beforehand(compare, in_process, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "available_memory", lambda: 1 << 20)
    assert compare("--heads", "plain") == 1
    captured = capsys.readouterr()
    assert "about 1.5 GiB of memory" in captured.out
    assert "--jobs 1: the rows need about 1.5 GiB of memory, 0.0 GiB are available" in captured.err
    assert in_process == []


def test_features_that_are_not_finite_name_their_image(compare, in_process, tmp_path, capsys):
    path = tmp_path / "broken.pth"
    content = torch.load(tmp_path / "backbone.pth", weights_only=True)
    content["model"]["backbone.res5.0.conv1.weight"][0] = 3e38  # the features overflow
    torch.save(content, path)
    assert compare("--heads", "plain", "--weights", path) == 1
    error = capsys.readouterr().err
    assert "_leftImg8bit.png: the backbone's features are not finite" in error
    assert in_process == []


@pytest.mark.slow
def test_rows_run_in_processes_of_their_own(compare, tmp_path, capfd):
    assert compare("--heads", "plain,graph", "--seeds", "1", "--jobs", "2") == 0
    out = capfd.readouterr().out
    assert "2 rows to train, 2 at a time" in out and "2 of 2 rows are finished" in out
    for record in load_records(tmp_path / "records"):
        assert record.cost["peak_memory"] >= 0
        assert json.loads(json.dumps(record.metrics))["sem_seg"]["mIoU"] > 0


# ---------------------------------------------------------------- processes


def _good(job, setting, steps, errors):
    steps.value += 5


def _failing(job, setting, steps, errors):
    errors.send("ValueError: no such thing")


def _killed(job, setting, steps, errors):
    os.kill(os.getpid(), signal.SIGKILL)


def _sleeping(job, setting, steps, errors):
    time.sleep(0.6)


def outcomes(monkeypatch, child, count=1, parallel=1, budget=None):
    # Threads of this process are no concern of such small children.
    context = workers.multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(workers, "_child", child)
    deadline = None if budget is None else time.monotonic() + budget
    steps = []
    found = list(workers.run_jobs(range(count), None, parallel, deadline, steps.append))
    return found, sum(steps)


def test_every_job_ends_with_its_outcome(monkeypatch):
    found, _ = outcomes(monkeypatch, _good, count=3, parallel=2)
    assert sorted(found) == [(0, None), (1, None), (2, None)]  # in the order in which they end
    assert outcomes(monkeypatch, _good)[1] == 5
    assert outcomes(monkeypatch, _failing)[0] == [(0, "ValueError: no such thing")]
    [(_, message)] = outcomes(monkeypatch, _killed)[0]
    assert "ended by SIGKILL; is the memory full? Use fewer --jobs" in message


def test_a_time_budget_starts_no_row_that_would_end_later(monkeypatch):
    found, _ = outcomes(monkeypatch, _sleeping, count=9, budget=1.0)
    assert 1 <= len(found) <= 2  # the second ends at 1.2 s at the earliest
