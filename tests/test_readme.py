"""The examples of the README run as printed."""

import re
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model

from cdgcnet import load_cfg

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- tests/test_readme.py runs this -->\n```python\n(.+?)```", README, re.S)


def run(example):
    names: dict = {}
    exec(example, names)  # from our own README
    return names


def test_the_graph_alone():
    alone, _ = EXAMPLES
    assert len(alone.strip().splitlines()) <= 10
    names = run(alone)
    assert names["refined"].shape == names["features"].shape
    assert names["features"].grad is not None


def test_detectron2s_predictor(tmp_path, monkeypatch):
    _, example = EXAMPLES
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    folder = Path("output/streets")
    folder.mkdir(parents=True)
    cfg = load_cfg(str(ROOT / "configs/Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml"))
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    cv2.imwrite("street.png", np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8))
    assert run(example)["labels"].shape == (61, 90)


def test_the_first_page_is_short_and_complete():
    assert len(README.splitlines()) <= 120
    for page in (ROOT / "README.md", *(ROOT / "projects" / "CDGCNet").glob("*.md")):
        left = re.findall(
            r"\b[A-Z]+_(?:SECTION|TABLE|NUMBER|INSTRUMENT)\b", page.read_text("utf-8")
        )
        assert not left, f"{page.name}: {left}"
