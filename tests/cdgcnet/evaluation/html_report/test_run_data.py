"""Reading a run's folder: what an evaluation writes, and what goes wrong with files."""

import json
import math

import pytest

from cdgcnet.evaluation.html_report.run_data import read_curves, read_run, read_scores


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_one_dataset_is_named_by_the_config(tmp_path):
    write(tmp_path / "results.json", {"sem_seg": {"mIoU": 5, "IoU-a": None}})
    write(tmp_path / "config.yaml", "DATASETS: {TEST: [my_set]}")
    run = read_run(tmp_path, "mine")
    assert run.name == "mine" and run.scores["my_set"]["sem_seg"]["mIoU"] == 5
    assert math.isnan(run.scores["my_set"]["sem_seg"]["IoU-a"])
    assert run.config["DATASETS.TEST"] == ["my_set"] and run.curves == {}


def test_several_datasets(tmp_path):
    path = write(tmp_path / "results.json", {"a": {"sem_seg": {"mIoU": 1}}, "b": {}})
    assert read_scores(path, ["a", "b"]) == {"a": {"sem_seg": {"mIoU": 1.0}}, "b": {}}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "no readable JSON"),
        ("[" * 100_000, "no readable JSON"),
        ([1], "found a list"),
        ({"sem_seg": 3}, "no metrics by task"),
        ({"sem_seg": {"mIoU": "high"}}, "mIoU is not a number"),
        ({"sem_seg": {"mIoU": True}}, "mIoU is not a number"),
    ],
)
def test_results_that_no_evaluation_has_written(tmp_path, content, problem):
    path = write(tmp_path / "results.json", content)
    with pytest.raises(ValueError, match=problem) as error:
        read_scores(path, [])
    assert str(path) in str(error.value)


def test_a_folder_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate the run first"):
        read_run(tmp_path, "mine")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_run(tmp_path / "missing", "mine")


def test_a_config_that_is_none(tmp_path):
    write(tmp_path / "results.json", {"sem_seg": {"mIoU": 5}})
    write(tmp_path / "config.yaml", "!!python/object/apply:os.getcwd []")
    with pytest.raises(ValueError, match=r"config\.yaml: not a readable config"):
        read_run(tmp_path, "mine")


def test_curves_of_a_killed_and_resumed_run(tmp_path):
    lines = [
        {"iteration": 19, "total_loss": 3.0, "loss_aux": 1.0, "lr": 0.1, "sem_seg/mIoU": 10.0},
        {"iteration": 39, "total_loss": 2.5},
        {"iteration": 39, "total_loss": 2.0},  # repeated after resuming
        {"total_loss": 1.0},  # an evaluation alone
        {"iteration": 59, "total_loss": float("nan")},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"iteration": 79, "total_l'
    assert read_curves(write(tmp_path / "metrics.json", text)) == {
        "total_loss": [(19, 3.0), (39, 2.0)],
        "loss_aux": [(19, 1.0)],
        "sem_seg/mIoU": [(19, 10.0)],
    }
