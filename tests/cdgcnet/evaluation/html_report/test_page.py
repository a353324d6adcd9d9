"""The page of an evaluation: right numbers, harmless names, no other hosts, bounded size."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from cdgcnet import Trainer
from cdgcnet.engine.defaults import run
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.evaluation.html_report import page as page_module
from cdgcnet.evaluation.html_report.page import write_evaluation_page
from cdgcnet.evaluation.testing import build_evaluator, evaluate_dataset, evaluation_folder
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind

SET = "cdgc_cityscapes_val"
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}"


class Tables(HTMLParser):
    """Class of a table -> key of a row, or its first cell -> numbers of its cells."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.titles, self.tags = {}, [], []
        self._table = self._row = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag == "table":
            self._table = self.tables.setdefault(values.get("class", ""), {})
        elif tag == "tr":
            self._row = self._table.setdefault(values.get("data-key", len(self._table)), [])
        elif tag == "td" and "data-value" in values:
            self._row.append(float(values["data-value"]))


@pytest.fixture
def hostile_set(tmp_path):
    """``hostile_set(names)``: a registered set with two images whose names are markup."""
    registered = "cdgc_test_html_report"
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    dicts = []
    for i in range(2):
        image = folder / f"{i} <img src=x onerror=alert(1)>&{{{{ 7*7 }}}}.png"
        label = folder / f"{i}.png"
        cv2.imwrite(str(image), generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        cv2.imwrite(str(label), generator.integers(0, 3, (20, 30), dtype=np.uint8))
        dicts.append({"file_name": str(image), "sem_seg_file_name": str(label)})

    def register(names):
        DatasetCatalog.register(registered, lambda: dicts)
        MetadataCatalog.get(registered).set(stuff_classes=names, ignore_label=255)
        return registered

    yield register
    if registered in DatasetCatalog.list():
        DatasetCatalog.remove(registered)
        MetadataCatalog.remove(registered)


def finished_evaluator(name, folder, count=3, **options):
    """An evaluator that has seen random predictions of every image, and its results."""
    evaluator = CDGCEvaluator(name, count, output_dir=folder, **options)
    generator = torch.Generator().manual_seed(0)
    for x in DatasetCatalog.get(name):
        labels = {
            kind: torch.randint(count, (20, 30), generator=generator).to(torch.uint8)
            for kind in (PredictionKind.REFINED, PredictionKind.COARSE)
        }
        evaluator.process([x], [LabelPrediction(labels)])
    return evaluator, evaluator.evaluate()


def test_numbers_are_those_of_the_results(run_data, run_cfg, clean_logging):
    run_cfg.TEST.AUG.ENABLED = True
    run_cfg.TEST.PICTURES = True
    run_cfg.TEST.WORST_IMAGES = 1
    run(run_cfg)
    folder = run_cfg.OUTPUT_DIR
    with open(f"{folder}/results.json") as file:
        results = json.load(file)
    with open(f"{folder}/inference/{SET}_TTA/report.html", encoding="utf-8") as file:
        text = file.read()
    assert "Images to look at" in text and "Drag the handle" not in text  # there is no coarse one
    scores = Tables(text).tables["sortable scores"]
    columns = ["sem_seg_coarse", "sem_seg", "sem_seg_oracle", "sem_seg_TTA"]
    columns += [t for t in results if t.startswith("sem_seg") and t not in columns]
    for key in [k for k in results["sem_seg"] if k == "mIoU" or k.startswith("IoU-")]:
        expected = [results[task][key] for task in columns]
        if any(value is not None for value in expected):
            expected = [math.nan if value is None else value for value in expected]
            found = scores.pop(key)
            np.testing.assert_array_equal(found[:-1], expected)
            np.testing.assert_array_equal(found[-1], expected[1] - expected[0])
    assert not [key for key in scores if str(key).startswith("IoU-")]

    with open(f"{folder}/inference/{SET}/report.html", encoding="utf-8") as file:
        text = file.read()
    assert "Drag the handle" in text and "mIoU in percent over the iterations" in text
    graph = Tables(text).tables["sortable graph"]
    assert graph["all"][:3] == [results["graph"][key] for key in ("fixed", "broken", "net")]
    assert graph["road"][0] == results["graph"]["fixed-road"]


def test_the_curves_hold_the_scores_of_the_evaluation_itself(hostile_set, run_cfg, tmp_path):
    # Within a training the page is written before its scores are in metrics.json.
    evaluator, results = finished_evaluator(hostile_set(["a", "b", "c"]), tmp_path)
    expected = {f"{task}/mIoU": results[task]["mIoU"] for task in ("sem_seg", "sem_seg_coarse")}
    run_cfg.DATASETS.TEST = ("mine",)
    found = page_module._with_these_scores({}, run_cfg, evaluator, results)
    assert found == {}  # no training is running
    with EventStorage(29):
        earlier = {"sem_seg/mIoU": [(14, 5.0), (29, 6.0)]}
        found = page_module._with_these_scores(earlier, run_cfg, evaluator, results)
        assert found["sem_seg/mIoU"] == [(14, 5.0), (29, expected["sem_seg/mIoU"])]
        assert found["sem_seg_coarse/mIoU"] == [(29, expected["sem_seg_coarse/mIoU"])]
        run_cfg.DATASETS.TEST = ("mine", "other")
        found = page_module._with_these_scores({}, run_cfg, evaluator, results)
        assert f"{evaluator.dataset_name}/sem_seg/mIoU" in found


def test_table_of_images_is_the_csv(run_data, run_cfg):
    torch.manual_seed(0)
    evaluate_dataset(
        run_cfg,
        Trainer.build_model(run_cfg),
        SET,
        build_evaluator(run_cfg, SET),
        lambda skip: Trainer.build_test_loader(run_cfg, SET, skip),
    )
    folder = evaluation_folder(run_cfg, SET)
    rows = Tables((folder / "report.html").read_text(encoding="utf-8")).tables["sortable images"]
    cells = [line.split(",") for line in (folder / "per_image.csv").read_text().splitlines()]
    shown = [row for row in rows.values() if row]
    count = len(shown[0])
    assert sorted(shown) == sorted([float(v) for v in row[1 : 1 + count]] for row in cells[1:])
    assert [row[0] for row in shown] == sorted(row[0] for row in shown)  # the worst first


@pytest.mark.parametrize("draw", [False, True])
def test_names_are_text_and_nothing_is_loaded(hostile_set, run_cfg, tmp_path, draw):
    name = hostile_set([HOSTILE, "$x_", "é"])
    evaluator, results = finished_evaluator(name, tmp_path / "out", worst_images=2, draw=draw)
    write_evaluation_page(run_cfg, evaluator, results)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tables(text).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [a for _, a in tags if any(key.startswith("on") for key in a)]
    assert "<img src=x" not in text and "49" not in re.findall(r"alert\(1\).{0,40}", text)
    assert "&lt;script&gt;alert(1)" in text  # the name is shown
    assert "{{ 7*7 }}" in text  # and it is no template
    assert not re.search(r"https?:|url\(|@import", text)
    for tag, values in tags:
        for key in ("src", "href"):
            assert values.get(key, "data:").startswith("data:"), tag
    assert [tag for tag, _ in tags].count("figure") == (2 if draw else 0)


def test_size_for_500_images(hostile_set, run_cfg, tmp_path):
    # Noise does not compress, so these are the largest files that pictures can make.
    name = hostile_set(["a", "b", "c"])
    dicts = DatasetCatalog.get(name)
    one = dicts[0]
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    cv2.imwrite(one["file_name"], noise)
    cv2.imwrite(one["sem_seg_file_name"], noise[..., 0] % 3)
    files = [tmp_path / "images" / f"noise_{i}.png" for i in range(500)]
    for file in files:
        file.hardlink_to(one["file_name"])
    many = [dict(one, file_name=str(file)) for file in files]
    dicts[:] = many
    evaluator = CDGCEvaluator(name, 3, output_dir=tmp_path / "out", worst_images=40, draw=True)
    labels = torch.from_numpy(noise[..., 1] % 3)
    prediction = LabelPrediction({PredictionKind.REFINED: labels, PredictionKind.COARSE: labels})
    evaluator.process([many[0]], [prediction])
    [record] = evaluator.records
    evaluator.records = [
        type(record)(x["file_name"], record.counts, label_maps=record.label_maps) for x in many
    ]
    write_evaluation_page(run_cfg, evaluator, evaluator.evaluate())
    path = tmp_path / "out" / "report.html"
    assert 1_000_000 < path.stat().st_size < 10_000_000
    text = path.read_text(encoding="utf-8")
    assert len([r for r in Tables(text).tables["sortable images"].values() if r]) == 500
    assert re.search(r"\d+ more are in the folder pictures", text)


def test_a_page_that_fails_costs_no_score(run_data, run_cfg, monkeypatch, caplog, clean_logging):
    def fail(*args):
        raise RuntimeError("no template")

    monkeypatch.setattr(page_module, "render", fail)
    results = run(run_cfg)
    with open(f"{run_cfg.OUTPUT_DIR}/results.json") as file:
        assert json.load(file)["sem_seg"]["mIoU"] == results["sem_seg"]["mIoU"]
    folder = f"{run_cfg.OUTPUT_DIR}/inference/{SET}"
    messages = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert messages == [
        f"{folder}/report.html was not written (no template). Scores and all other files are "
        "complete."
    ]


def test_scores_of_another_run_are_not_mixed_in(hostile_set, run_cfg, tmp_path):
    name = hostile_set(["a", "b", "c"])
    run_cfg.DATASETS.TEST = (name,)
    evaluator, results = finished_evaluator(name, tmp_path / "run" / "inference" / name)
    other = {"sem_seg": {"mIoU": 1.0}, "sem_seg_TTA": {"mIoU": 2.0}}
    (tmp_path / "run" / "inference").mkdir(parents=True)
    (tmp_path / "run" / "results.json").write_text(json.dumps(other))
    write_evaluation_page(run_cfg, evaluator, results)
    text = (evaluator.output_dir / "report.html").read_text(encoding="utf-8")
    assert Tables(text).tables["sortable scores"]["mIoU"][:-1] == [
        results["sem_seg_coarse"]["mIoU"],
        results["sem_seg"]["mIoU"],
    ]


@pytest.mark.slow
def test_in_a_browser(hostile_set, run_cfg, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium or Chrome on PATH")
    name = hostile_set([HOSTILE, "b", "c"])
    evaluator, results = finished_evaluator(name, tmp_path / "out", worst_images=1, draw=True)
    write_evaluation_page(run_cfg, evaluator, results)
    done = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path}/profile", "--dump-dom"),
            (tmp_path / "out" / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    dom = Tables(done.stdout)
    below = [values for _, values in dom.tags if values.get("class") == "below"]
    assert below and all(values["src"].startswith("data:image/jpeg") for values in below)
    assert "Content Security Policy" not in done.stderr and "Uncaught" not in done.stderr
