"""What an evaluation leaves behind; interruption, resume, and files that cannot be read."""

import csv
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from cdgcnet import Trainer
from cdgcnet.evaluation import resume as resume_module
from cdgcnet.evaluation.metrics import graph_metrics, node_metrics, segmentation_metrics
from cdgcnet.evaluation.testing import build_evaluator, check_test_set, evaluate_dataset
from cdgcnet.evaluation.writers import label_paths
from cdgcnet.modeling.context_modules import CONTEXT_MODULES
from cdgcnet.modeling.predictions import PredictionKind

SET = "cdgc_cityscapes_val"


@pytest.fixture
def model(run_cfg):
    torch.manual_seed(0)
    return Trainer.build_model(run_cfg).eval()


@pytest.fixture
def own_set(tmp_path):
    """``own_set(dicts)`` registers a set of 19 classes and gives its name."""
    name = "cdgc_test_evaluation_run"

    def register(dicts):
        DatasetCatalog.register(name, lambda: dicts)
        classes = list(MetadataCatalog.get(SET).stuff_classes)
        MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255)
        return name

    yield register
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def configured(cfg, **changes):
    cfg = cfg.clone()
    for key, value in changes.items():
        setattr(cfg.TEST, key, value)
    return cfg


def evaluate(cfg, model, name=SET):
    evaluator = build_evaluator(cfg, name)
    return evaluate_dataset(
        cfg, model, name, evaluator, lambda skip: Trainer.build_test_loader(cfg, name, skip)
    )


def folder_of(cfg, name=SET) -> Path:
    return Path(cfg.OUTPUT_DIR) / "inference" / name


# ---------------------------------------------------------------- numbers by hand


def test_graph_metrics_by_hand():
    # Class a has 10 pixels, b has 30. Of a, 2 were fixed and 1 broken; of b, 3 were broken.
    confusion = np.array([[9, 1], [5, 25]])
    fixed, broken = np.array([[0, 2], [0, 0]]), np.array([[0, 1], [3, 0]])
    found = graph_metrics(confusion, fixed, broken, ["a", "b"])
    assert (found["fixed-a"], found["broken-a"], found["net-a"]) == (20, 10, 10)
    assert (found["fixed-b"], found["broken-b"], found["net-b"]) == (0, 10, -10)
    assert (found["fixed"], found["broken"], found["net"]) == (5, 10, -5)  # 2 and 4 of 40


def test_node_metrics_by_hand():
    # Four images; class a has 6 nodes in two of them, b none.
    found = node_metrics(np.array([6, 0]), np.array([2, 0]), 4, ["a", "b"])
    assert found == {"nodes-a": 3, "node_images-a": 50, "nodes-b": 0, "node_images-b": 0}


# ---------------------------------------------------------------- models without class-wise nodes


@pytest.mark.parametrize(
    "options",
    [*({"CONTEXT_MODULE": name} for name in CONTEXT_MODULES), {"SCOPE": "image"}],
    ids=lambda options: next(iter(options.values())),
)
def test_a_model_without_class_wise_nodes_is_evaluated(run_data, run_cfg, options, caplog):
    for key, value in options.items():
        setattr(run_cfg.MODEL.CDGC, key, value)
    cfg = configured(run_cfg, PICTURES=True, WORST_IMAGES=1, ORACLE=True)
    torch.manual_seed(0)
    with caplog.at_level("INFO"):
        results = evaluate(cfg, Trainer.build_model(cfg).eval())
    assert {"sem_seg", "sem_seg_coarse", "graph"} <= results.keys()
    assert "sem_seg_oracle" not in results  # no class map to correct
    lines = caplog.text.splitlines()
    [header] = [line for line in lines if "IoU coarse" in line]
    assert header.split()[-3:] == ["%", "net", "%"]  # no columns of nodes
    [total] = [line for line in lines if line.split()[:1] == ["all"]]
    net = results["graph"]["net"]
    assert total.split()[-1] == f"{net:.2f}"


# ---------------------------------------------------------------- files


def test_files_of_an_evaluation_agree_with_its_scores(run_data, run_cfg, model):
    cfg = configured(run_cfg, PICTURES=True, WORST_IMAGES=1, SAVE_LABELS=True, SAVE_RLE=True)
    results = evaluate(cfg, model)
    folder = folder_of(cfg)
    names = MetadataCatalog.get(SET).stuff_classes
    for task, file in (("sem_seg", "refined"), ("sem_seg_coarse", "coarse")):
        scores = segmentation_metrics(np.load(folder / f"confusion_{file}.npy"), names)
        for key, value in scores.items():
            assert results[task][key] == pytest.approx(value, nan_ok=True)
    fixed, broken = np.load(folder / "fixed.npy"), np.load(folder / "broken.npy")
    # Fixing and breaking is all the difference between coarse and refined.
    refined, coarse = (np.load(folder / f"confusion_{n}.npy") for n in ("refined", "coarse"))
    assert np.trace(refined) - np.trace(coarse) == fixed.sum() - broken.sum()

    dicts = DatasetCatalog.get(SET)
    with (folder / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file_name"] for row in rows] == sorted(d["file_name"] for d in dicts)
    assert sum(int(row["fixed"]) for row in rows) == fixed.sum()
    absent = [n for n in names if np.isnan(results["sem_seg"][f"IoU-{n}"])]
    assert absent and all(row[f"IoU-{n}"] == "" for n in absent for row in rows)

    # The label maps are those that were counted, and pixel values are classes.
    counts = np.zeros((19, 19), np.int64)
    for x in dicts:
        path = folder / "labels" / Path(x["file_name"]).with_suffix(".png").name
        guess = np.asarray(Image.open(path))
        truth = np.asarray(Image.open(x["sem_seg_file_name"]))
        np.add.at(counts, (truth[truth < 19], guess[truth < 19]), 1)
    np.testing.assert_array_equal(counts, refined)

    pictures = {p.name for p in (folder / "pictures").iterdir()}
    assert pictures and all(p.endswith("_leftImg8bit.png") for p in pictures)
    for name in ("confusion_refined", "confusion_coarse", "confusion_oracle", "fixed", "broken"):
        with Image.open(folder / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5  # something is drawn


def counted_predictions(model, monkeypatch) -> list[str]:
    """The file names that the model predicts from now on."""
    seen = []
    predict = model.predict_labels

    def counting(batch):
        seen.extend(x["file_name"] for x in batch)
        return predict(batch)

    monkeypatch.setattr(model, "predict_labels", counting)
    return seen


def test_pictures_need_no_second_prediction(run_data, run_cfg, model, monkeypatch):
    cfg = configured(run_cfg, PICTURES=True, WORST_IMAGES=1)
    seen = counted_predictions(model, monkeypatch)
    evaluate(cfg, model)
    assert list((folder_of(cfg) / "pictures").iterdir())
    assert len(seen) == 3  # every image once


def test_an_interrupted_evaluation_draws_the_same_pictures(run_data, run_cfg, model, monkeypatch):
    cfg = configured(run_cfg, PICTURES=True, WORST_IMAGES=1)
    evaluate(cfg, model)
    cfg = configured(cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 2)
    evaluate(cfg, model)
    folder = folder_of(cfg)
    now = {p.name: p.read_bytes() for p in (folder / "pictures").iterdir()}
    before = folder.with_name(SET + ".1") / "pictures"
    assert now == {p.name: p.read_bytes() for p in before.iterdir()}


def test_a_picture_that_fails_costs_no_score(run_data, run_cfg, model, monkeypatch, caplog):
    from cdgcnet.visualization import confusion_matrix

    def fail(*args):
        raise RuntimeError("no font")

    monkeypatch.setattr(confusion_matrix, "draw_confusion_matrix", fail)
    results = evaluate(configured(run_cfg, PICTURES=True), model)
    assert results["sem_seg"]["mIoU"] >= 0
    assert (folder_of(run_cfg) / "per_image.csv").is_file()
    [message] = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "are incomplete (no font)" in message


def test_rle_is_what_detectron2_dumps(run_data, run_cfg, model, tmp_path):
    cfg = configured(run_cfg, SAVE_RLE=True)
    evaluate(cfg, model)
    ours = json.loads((folder_of(cfg) / "sem_seg_predictions.json").read_text())

    reference = SemSegEvaluator(SET, distributed=False, output_dir=str(tmp_path / "theirs"))
    reference.reset()
    for batch in Trainer.build_test_loader(cfg, SET):
        labels = model.predict_labels(batch)[0].labels[PredictionKind.REFINED]
        one_hot = torch.nn.functional.one_hot(labels.long(), 19).permute(2, 0, 1)
        reference.process(batch, [{"sem_seg": one_hot}])
    reference.evaluate()
    theirs = json.loads((tmp_path / "theirs" / "sem_seg_predictions.json").read_text())

    def key(entry):
        return entry["file_name"], entry["category_id"]

    assert sorted(ours, key=key) == sorted(theirs, key=key)


def test_no_files_nobody_asked_for(run_data, run_cfg, model):
    evaluate(run_cfg, model)
    assert {p.name for p in folder_of(run_cfg).iterdir()} == {
        *(f"confusion_{n}.npy" for n in ("refined", "coarse", "oracle")),
        "fixed.npy",
        "broken.npy",
        "per_image.csv",
        "report.html",
    }


def test_a_second_evaluation_keeps_the_first(run_data, run_cfg, model):
    evaluate(run_cfg, model)
    first = (folder_of(run_cfg) / "per_image.csv").read_bytes()
    evaluate(run_cfg, model)
    assert (folder_of(run_cfg).with_name(SET + ".1") / "per_image.csv").read_bytes() == first


# ---------------------------------------------------------------- resume


class Killed(BaseException):
    """As a kill: nothing catches it."""


def interrupted(cfg, model, monkeypatch, after: int) -> None:
    """Evaluate and be killed when ``after`` images are finished."""
    append = resume_module.PartialResults.append
    done = []

    def kill(self, record):
        if len(done) == after:
            raise Killed
        append(self, record)
        done.append(record)

    with monkeypatch.context() as patch:
        patch.setattr(resume_module.PartialResults, "append", kill)
        with pytest.raises(Killed):
            evaluate(cfg, model)


def test_resume_gives_the_same_results_and_predicts_nothing_twice(
    run_data, run_cfg, model, monkeypatch
):
    expected = evaluate(run_cfg, model)
    cfg = configured(run_cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 2)
    seen = counted_predictions(model, monkeypatch)
    results = evaluate(cfg, model)
    assert results.keys() == expected.keys()
    for task, scores in expected.items():
        assert results[task] == pytest.approx(scores, nan_ok=True)
    assert len(seen) == 1  # of three
    folder = folder_of(cfg)
    assert not (folder / "finished").exists()  # complete, nothing is left to resume
    kept = folder.with_name(SET + ".1")
    assert (folder / "per_image.csv").read_bytes() == (kept / "per_image.csv").read_bytes()


def test_resume_may_be_interrupted_again_even_within_a_line(run_data, run_cfg, model, monkeypatch):
    expected = evaluate(run_cfg, model)
    cfg = configured(run_cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 1)
    finished = folder_of(cfg) / "finished"
    (part,) = finished.glob("*.jsonl")
    with part.open("a") as file:
        file.write('{"file_name": "half a li')
    interrupted(cfg, model, monkeypatch, 1)
    assert len(list(finished.glob("*.jsonl"))) == 2
    results = evaluate(cfg, model)
    assert results.keys() == expected.keys()
    for task, scores in expected.items():
        assert results[task] == pytest.approx(scores, nan_ok=True)


def test_resume_evaluates_an_image_again_whose_labels_have_changed(
    run_data, run_cfg, model, monkeypatch
):
    cfg = configured(run_cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 2)
    (part,) = (folder_of(cfg) / "finished").glob("*.jsonl")
    first = json.loads(part.read_text().splitlines()[0])["file_name"]
    [entry] = [d for d in DatasetCatalog.get(SET) if d["file_name"] == first]
    labels = Path(entry["sem_seg_file_name"])
    before = labels.read_bytes()
    try:
        road = np.full_like(np.array(Image.open(labels)), 7)
        Image.fromarray(road).save(labels)
        seen = counted_predictions(model, monkeypatch)
        results = evaluate(cfg, model)
        assert len(seen) == 2  # of three
        for task, scores in evaluate(run_cfg, model).items():
            assert results[task] == pytest.approx(scores, nan_ok=True)
    finally:
        labels.write_bytes(before)


@pytest.mark.parametrize("change", ["weights", "key"])
def test_resume_refuses_another_evaluation(run_data, run_cfg, model, monkeypatch, change):
    cfg = configured(run_cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 1)
    before = sorted(p.name for p in folder_of(cfg).rglob("*"))
    if change == "weights":
        with torch.no_grad():
            model.sem_seg_head.coarse_predictor[-1].weight.add_(1)
        words = "weights: "
    else:
        cfg = configured(cfg, BOUNDARY_RATIO=0.1)
        words = r"TEST\.BOUNDARY_RATIO: 0\.02 there, 0\.1 now"
    with pytest.raises(ValueError, match=r"(?s)TEST\.RESUME: .*finished.*" + words):
        evaluate(cfg, model)
    assert sorted(p.name for p in folder_of(cfg).rglob("*")) == before


def test_without_resume_the_interrupted_evaluation_is_kept_beside(
    run_data, run_cfg, model, monkeypatch
):
    cfg = configured(run_cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 1)
    evaluate(run_cfg, model)
    assert (folder_of(cfg).with_name(SET + ".1") / "finished").is_dir()


def test_a_broken_line_is_named(run_data, run_cfg, model, monkeypatch):
    cfg = configured(run_cfg, RESUME=True)
    interrupted(cfg, model, monkeypatch, 1)
    (part,) = (folder_of(cfg) / "finished").glob("*.jsonl")
    part.write_text("nonsense\n" + part.read_text())
    with pytest.raises(ValueError, match=r"000\.0\.jsonl, line 1: not the result of an image"):
        evaluate(cfg, model)


# ---------------------------------------------------------------- sets and files that are wrong


def copied(run_data, tmp_path, labeled=True) -> list[dict]:
    """The validation images in a folder of the test's own."""
    dicts = []
    for x in DatasetCatalog.get(SET):
        copy = tmp_path / "images" / Path(x["file_name"]).name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(Path(x["file_name"]).read_bytes())
        entry = {"file_name": str(copy)}
        if labeled:
            entry["sem_seg_file_name"] = x["sem_seg_file_name"]
        dicts.append(entry)
    return dicts


def test_a_set_without_labels_gives_label_maps(run_data, run_cfg, model, own_set, tmp_path):
    dicts = copied(run_data, tmp_path, labeled=False)
    name = own_set(dicts)
    with pytest.raises(ValueError, match=rf"{name} has no labels.*TEST\.SAVE_LABELS"):
        evaluate(run_cfg, model, name)
    cfg = configured(run_cfg, SAVE_LABELS=True, PICTURES=True)
    assert evaluate(cfg, model, name) == {}
    written = sorted((folder_of(cfg, name) / "labels").iterdir())
    assert [p.stem for p in written] == sorted(Path(d["file_name"]).stem for d in dicts)
    with Image.open(written[0]) as image:
        assert image.mode == "P" and image.size == (96, 64)


def test_unusable_sets(run_cfg):
    whole = {"file_name": "a.png", "sem_seg_file_name": "a_label.png"}
    with pytest.raises(ValueError, match=r"DATASETS\.TEST x has no images"):
        check_test_set(run_cfg, "x", [])
    with pytest.raises(ValueError, match=r"x: 1 of 2 images .* the first is b\.png"):
        check_test_set(run_cfg, "x", [whole, {"file_name": "b.png"}])
    with pytest.raises(ValueError, match=r"TEST\.RESUME is True, but x lists an image more than"):
        check_test_set(configured(run_cfg, RESUME=True), "x", [whole, whole])


BROKEN = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_broken_image_never_loses_the_others(run_data, run_cfg, model, own_set, tmp_path, kind):
    dicts = copied(run_data, tmp_path)
    name = own_set(dicts)
    bad = Path(dicts[1]["file_name"])
    whole = bad.read_bytes()
    BROKEN[kind](bad)
    cfg = configured(run_cfg, RESUME=True, SAVE_LABELS=True)
    with pytest.raises(ValueError, match=rf"(?s)1 images could not be evaluated.*{bad.name}"):
        evaluate(cfg, model, name)
    labels = folder_of(cfg, name) / "labels"
    assert len(list(labels.iterdir())) == 2
    assert len((folder_of(cfg, name) / "per_image.csv").read_text().splitlines()) == 1 + 2
    # Once it is mended, only this image is left to do.
    bad.write_bytes(whole)
    mended = evaluate(cfg, model, name)
    assert len(list(labels.iterdir())) == 3
    plain = evaluate(run_cfg, model, name)
    assert mended["sem_seg"] == pytest.approx(plain["sem_seg"], nan_ok=True)


def test_a_full_disk_is_named_and_the_finished_images_are_kept(
    run_data, run_cfg, model, monkeypatch
):
    cfg = configured(run_cfg, RESUME=True, SAVE_LABELS=True)
    save = Image.Image.save
    written = []

    def full(self, path, *args, **kwargs):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(self, path, *args, **kwargs)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match=r"the disk is full.*leftImg8bit\.png"):
            evaluate(cfg, model)
    (part,) = (folder_of(cfg) / "finished").glob("*.jsonl")
    assert len(part.read_text().splitlines()) == 2
    results = evaluate(cfg, model)
    assert results["sem_seg"] == pytest.approx(evaluate(run_cfg, model)["sem_seg"], nan_ok=True)


def test_two_images_never_share_a_label_file(run_data, run_cfg, model, own_set, tmp_path):
    dicts = copied(run_data, tmp_path)
    double = Path(dicts[0]["file_name"]).with_suffix(".jpg")
    Image.open(dicts[0]["file_name"]).save(double)
    dicts.append({**dicts[0], "file_name": str(double)})
    name = own_set(dicts)
    with pytest.raises(ValueError, match=r"TEST\.SAVE_LABELS: .* would both be written to"):
        evaluate(configured(run_cfg, SAVE_LABELS=True), model, name)


def test_label_files_stay_in_their_folder_whatever_the_images_are_called(tmp_path):
    images = ["a/b/one.jpg", "a/b/../../../two.jpg"]
    paths = label_paths(tmp_path / "labels", images)
    assert [os.path.normpath(path) for path in paths.values()] == [str(p) for p in paths.values()]
    assert all(path.is_relative_to(tmp_path / "labels") for path in paths.values())
    assert len(set(paths.values())) == 2


def test_the_longest_file_names_are_written(run_data, run_cfg, model, own_set, tmp_path):
    # File systems allow 255 bytes, which pictures, label maps and temporary files must respect.
    [first, *others] = copied(run_data, tmp_path)
    long = Path(first["file_name"]).with_name("ä" * 123 + ".png")  # 250 bytes
    Path(first["file_name"]).rename(long)
    name = own_set([{**first, "file_name": str(long)}, *others])
    evaluate(configured(run_cfg, SAVE_LABELS=True, PICTURES=True, WORST_IMAGES=3), model, name)
    folder = folder_of(run_cfg, name)
    assert (folder / "labels" / long.name).is_file()
    assert len(list((folder / "pictures").iterdir())) == 3
