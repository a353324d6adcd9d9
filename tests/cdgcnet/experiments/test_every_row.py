"""Every row of every table runs to its end: training, evaluation, test-time augmentation, tables.

A row that fails only in its evaluation would cost its whole training, so all of them are run here
on four tiny images. Rows that share a resolved config share a run, as they do in the tables.
"""

import argparse
import json
from pathlib import Path

import pytest

from cdgcnet.data.synthetic.writer import write_street_scenes
from cdgcnet.engine.defaults import run, setup
from cdgcnet.experiments.jobs import make_jobs
from cdgcnet.experiments.record import Record, select_scores
from cdgcnet.experiments.render import render
from cdgcnet.experiments.rows import find_rows

PROFILE = Path(__file__).resolve().parents[3] / "configs/experiments/profiles/tiny.yaml"
OVERRIDES = {
    "SOLVER.MAX_ITER": 2,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.AUG.SCALES": [0.5, 1.0],
    "TEST.ORACLE": True,
    "TEST.WORST_IMAGES": 1,
}
OPTS = [str(word) for pair in OVERRIDES.items() for word in pair]
JOBS = make_jobs(find_rows(PROFILE, "all"), seeds=1, split="val", overrides=OPTS)
METADATA = {"command": "-", "commit": "-", "versions": "-", "hardware": "-", "date": "-"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    write_street_scenes(root / "cdgc_streets", num_train=4, num_val=2, height=64, width=96)
    return root


@pytest.fixture
def run_row(data, tmp_path, monkeypatch, clean_logging):
    """``run_row(job)``: the results of a row's training and evaluation."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    # The registered street scenes would be drawn in their full number.
    monkeypatch.setattr("cdgcnet.data.synthetic.writer.write_street_scenes", lambda folder: folder)

    def make(job):
        opts = [*job.overrides, "SEED", "1", "OUTPUT_DIR", str(tmp_path / "run")]
        arguments = argparse.Namespace(
            config_file=[str(path) for path in job.row.config_files],
            opts=opts,
            eval_only=False,
            resume=False,
        )
        cfg = setup(arguments)
        run(cfg)
        return json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.row.name)
def test_a_row_runs_to_its_end(job, run_row, tmp_path):
    found = run_row(job)
    tta = job.cfg.TEST.AUG.ENABLED
    assert "sem_seg" in found
    assert ("sem_seg_TTA" in found) == tta
    assert ("sem_seg_coarse" in found) == job.cfg.MODEL.CDGC.ENABLED
    record = Record(
        row=job.row.name,
        label=job.row.label,
        hash=job.hash,
        seed=1,
        overrides=list(job.overrides),
        weights="random weights",
        scores=select_scores(found, tta=tta),
        cost={},
        run_metadata=METADATA,
    )
    records = {(job.hash, 1): record}
    [table] = render(PROFILE, tmp_path / "results", records, [job.row.group], "val", OPTS)
    [task] = record.scores.keys() & {"sem_seg_TTA" if tta else "sem_seg"}
    assert f"{record.scores[task]['mIoU']:.2f} (1)" in table.read_text(encoding="utf-8")
    assert table.with_suffix(".png").is_file()
