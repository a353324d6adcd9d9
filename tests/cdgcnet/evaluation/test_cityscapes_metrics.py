"""Cityscapes' scores, compared with the benchmark's own script on files in its format."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from cdgcnet.data.datasets.cityscapes_classes import LABEL_IDS, NAMES
from cdgcnet.data.label_io import read_instances
from cdgcnet.evaluation.cityscapes_metrics import count_instances, instance_metrics
from cdgcnet.evaluation.evaluator import CDGCEvaluator
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind

SIZE = (24, 40)
CAR = NAMES.index("car")


def write_pair(folder, index: int, rng) -> np.ndarray:
    """One image in Cityscapes' files, with instances, groups and ignored ids; gives train ids."""
    ids = np.array([0, 3, *LABEL_IDS])[rng.integers(0, 21, (6, 10))].repeat(4, 0).repeat(4, 1)
    instances = ids.astype(np.int32)
    for label_id in (24, 25, 26, 33):  # of the classes with instances, two or three each
        number = rng.integers(0, 3, SIZE) // rng.integers(1, 3)
        there = ids == label_id
        instances[there] = label_id * 1000 + number[there]
    group = (ids == 26) & (np.arange(SIZE[1]) < 8)
    instances[group] = 26  # a group of cars has the label id alone
    trailer = rng.random(SIZE) < 0.02
    ids[trailer], instances[trailer] = 30, 30001  # an instance whose class is not evaluated
    table = np.full(256, 255, np.uint8)
    table[LABEL_IDS] = range(19)
    stem = f"x_{index:06}_000019"
    images, labels = folder / "leftImg8bit/val/x", folder / "gtFine/val/x"
    for each in (images, labels):
        each.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(images / f"{stem}_leftImg8bit.png")
    for kind, values in (
        ("labelTrainIds", table[ids]),
        ("labelIds", ids.astype(np.uint8)),
        ("instanceIds", instances.astype(np.uint16)),
    ):
        Image.fromarray(values).save(labels / f"{stem}_gtFine_{kind}.png")
    return table[ids]


@pytest.mark.parametrize("classes", [range(19), [0, 1, 8, 11, 13, 18]], ids=["all", "some"])
def test_equal_to_cityscapesscripts(tmp_path, monkeypatch, classes):
    # 2.3 still asks for a function that NumPy 2.4 has dropped.
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    from cdgcnet import register_all

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_all()
    root = tmp_path / "cityscapes"
    rng = np.random.default_rng(len(classes))
    predictions, guesses = [], []
    for i in range(3):
        truth = write_pair(root, i, rng)
        wrong = rng.choice(list(classes), SIZE)
        guess = np.where((rng.random(SIZE) < 0.6) & (truth < 19), truth, wrong).astype(np.uint8)
        path = tmp_path / f"x_{i:06}_000019.png"
        Image.fromarray(np.array(LABEL_IDS, np.uint8)[guess]).save(path)
        guesses.append(guess)
        predictions.append(str(path))
    dicts = DatasetCatalog.get("cdgc_cityscapes_val")
    assert all("instance_file_name" in d for d in dicts)

    evaluator = CDGCEvaluator("cdgc_cityscapes_val", 19, 255)
    for x, guess in zip(dicts, guesses, strict=True):
        evaluator.process([x], [LabelPrediction({PredictionKind.REFINED: torch.from_numpy(guess)})])
    ours = evaluator.evaluate()["sem_seg"]

    official.args.quiet, official.args.JSONOutput = True, False
    truths = [d["sem_seg_file_name"].replace("labelTrainIds", "labelIds") for d in dicts]
    theirs = official.evaluateImgLists(predictions, truths, official.args)
    pairs = {
        "classScores": "IoU",
        "classInstScores": "iIoU",
        "categoryScores": "category_IoU",
        "categoryInstScores": "category_iIoU",
    }
    compared = 0
    for table, key in pairs.items():
        for name, value in theirs[table].items():
            if f"{key}-{name}" in ours:
                assert ours[f"{key}-{name}"] == pytest.approx(100 * value, abs=1e-9, nan_ok=True)
                compared += 1
            else:  # classes and categories that the benchmark does not evaluate
                assert np.isnan(value), (table, name)
    assert compared == 19 + 8 + 7 + 2
    for key, average in (
        ("mIoU_union", "averageScoreClasses"),
        ("iIoU", "averageScoreInstClasses"),
        ("category_IoU", "averageScoreCategories"),
        ("category_iIoU", "averageScoreInstCategories"),
    ):
        assert ours[key] == pytest.approx(100 * theirs[average], abs=1e-9)
    json.dumps(ours)  # plain numbers


def test_every_instance_weighs_the_same_by_hand():
    # Two cars, of 100 pixels (50 found) and of 10 (all found); 5 pixels of road called a car.
    # Weight of a pixel: A / 100 and A / 10, A the average car. TP = A (0.5 + 1), all = 2 A.
    # iIoU = 1.5 A / (2 A + 5).
    average = 12794.0202738185
    confusion = np.zeros((19, 19), np.int64)
    confusion[CAR, CAR], confusion[CAR, 0], confusion[0, CAR] = 60, 50, 5
    instances = np.array([[CAR, 100, 50, 50], [CAR, 10, 10, 10]])
    found = instance_metrics(confusion, instances)
    assert found["iIoU-car"] == pytest.approx(100 * 1.5 * average / (2 * average + 5))
    assert np.isnan(found["iIoU-person"])
    assert found["iIoU"] == found["iIoU-car"]


def test_instances_are_counted_by_class_and_category():
    # One car of 4 pixels: 2 called car, 1 truck (a vehicle too), 1 road. Then a group and a road.
    instances = np.array([[26001] * 4 + [26, 7]], np.int32)
    guess = np.array([[CAR, CAR, NAMES.index("truck"), 0, CAR, 0]], np.uint8)
    assert count_instances(instances, guess).tolist() == [[CAR, 4, 2, 3]]


def test_bad_instance_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone_instanceIds\.png: no such instance file"):
        read_instances(tmp_path / "gone_instanceIds.png", (2, 2))
    path = tmp_path / "x_instanceIds.png"
    path.write_bytes(b"\x89PNG broken")
    with pytest.raises(ValueError, match=r"x_instanceIds\.png: not a readable instance file"):
        read_instances(path, (2, 2))
    Image.fromarray(np.zeros((2, 3), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"x_instanceIds\.png: instances are 2 x 3.*2 x 2"):
        read_instances(path, (2, 2))
