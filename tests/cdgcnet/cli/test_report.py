"""``cdgcnet report``: runs side by side, and folders that are none."""

import json
from pathlib import Path

import pytest

from cdgcnet.cli.main import main
from cdgcnet.cli.report import short_names


@pytest.fixture
def make_run(tmp_path):
    def make(name, rate, score):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        results = {"sem_seg": {"mIoU": score, "IoU-road": score}}
        (folder / "results.json").write_text(json.dumps(results))
        (folder / "config.yaml").write_text(f"SOLVER: {{BASE_LR: {rate}}}\n")
        metrics = {"iteration": 19, "total_loss": 1.0, "sem_seg/mIoU": score}
        (folder / "metrics.json").write_text(json.dumps(metrics) + "\n")
        return str(folder)

    return make


def test_two_runs_side_by_side(make_run, tmp_path, capsys):
    runs = [make_run("a/run", 0.01, 40.25), make_run("<b>/run", 0.02, 50.5)]
    output = tmp_path / "page.html"
    assert main(["report", *runs, "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"Report on 2 runs: {output}\n"
    text = output.read_text(encoding="utf-8")
    for expected in ("a/run", "&lt;b&gt;/run", "40.25", "50.50", "+10.25", "SOLVER.BASE_LR"):
        assert expected in text
    assert "<b>/run" not in text and "://" not in text
    assert text.count("data:image/svg+xml") == 2  # loss and mIoU, both runs on the same axes


def test_one_run_links_to_its_evaluations(make_run, capsys):
    folder = make_run("run", 0.01, 40.0)
    page = Path(folder) / "inference" / "my set" / "report.html"
    page.parent.mkdir(parents=True)
    page.write_text("")
    assert main(["report", folder]) == 0
    text = (Path(folder) / "report.html").read_text(encoding="utf-8")
    assert 'href="inference/my set/report.html"' in text
    assert main(["report", folder]) == 1  # nothing is overwritten unasked
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert main(["report", folder, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["missing"], "there is no such folder"),
        (["run", "run/."], "is given twice"),
        (["run", "--output", "run"], "it is a folder"),
    ],
)
def test_mistakes(make_run, tmp_path, monkeypatch, capsys, words, problem):
    make_run("run", 0.01, 40.0)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("cdgcnet report: error: ") and problem in line


def test_a_file_that_is_no_page_is_never_replaced(make_run, capsys):
    run = make_run("run", 0.01, 40.0)
    config = Path(run) / "config.yaml"
    before = config.read_text()
    assert main(["report", run, "--output", str(config), "--overwrite"]) == 1
    assert "expected a name that ends with .html" in capsys.readouterr().err
    assert config.read_text() == before


def test_names_are_as_short_as_possible():
    assert short_names([Path("/x/a/run"), Path("/x/b/run")]) == ["a/run", "b/run"]
    assert short_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
