"""The guide for Detectron2 projects of one's own runs as printed."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("own_project_train", "own_project_val")


@pytest.fixture
def registered(tmp_path):
    """Two datasets of two images each, registered as Detectron2's own are; 3 classes and 255."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        dicts = []
        for i in range(2):
            image, labels = tmp_path / f"{name}{i}.png", tmp_path / f"{name}{i}_labels.png"
            cv2.imwrite(str(image), rng.integers(0, 256, (40, 48, 3), np.uint8))
            cv2.imwrite(str(labels), np.repeat([0, 1, 2, 255], 12)[None].repeat(40, 0).astype("u1"))
            paths = {"file_name": str(image), "sem_seg_file_name": str(labels)}
            dicts.append({**paths, "height": 40, "width": 48})
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
        MetadataCatalog.get(name).set(stuff_classes=["road", "car", "sky"], ignore_label=255)
    yield
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("meta", ["CDGCSegmentor", "SemanticSegmentor"])
@pytest.mark.usefixtures("registered", "clean_logging")
def test_the_guide_trains_and_evaluates(meta, run_yaml, tmp_path, monkeypatch):
    guide = (ROOT / "docs" / "own_project.md").read_text(encoding="utf-8")
    [example] = re.findall(r"test_own_project.py runs this -->\n```python\n(.+?)```", guide, re.S)
    config = yaml.safe_load(run_yaml.read_text(encoding="utf-8"))
    config["MODEL"].update(META_ARCHITECTURE=meta, WEIGHTS="")
    config["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] = 3
    config["DATASETS"] = {"TRAIN": NAMES[:1], "TEST": NAMES[1:]}
    config["SOLVER"]["MAX_ITER"] = 2
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    names: dict = {}
    exec(example, names)  # from our own guide
    trainer = names["trainer"]
    assert trainer.iter == 2
    assert Path("output/model_final.pth").is_file()
    assert 0 <= trainer._last_eval_results["sem_seg"]["mIoU"] <= 100
