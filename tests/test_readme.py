"""The README's app example runs as printed."""

import re
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model

from cdgcnet import load_cfg

ROOT = Path(__file__).resolve().parent.parent


def test_the_app_example_of_the_readme_runs_as_printed(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tests/test_readme.py runs this -->\n```python\n(.+?)```", text, re.S)
    assert block, "README.md lost the marked example"
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    config, weights = (
        re.search(pattern, block[1])[1]
        for pattern in (r'load_cfg\("(.+?)"\)', r'WEIGHTS = "(.+?)"')
    )
    Path(weights).parent.mkdir(parents=True)
    torch.save({"model": build_model(load_cfg(config)).state_dict()}, weights)
    cv2.imwrite("street.png", np.random.default_rng(0).integers(0, 256, (61, 90, 3), np.uint8))

    names: dict = {}
    exec(block[1], names)  # the example is ours

    assert names["logits"].shape == (19, 61, 90)
    assert names["labels"].shape == (61, 90)
    assert len(block[1].strip().splitlines()) <= 10, "a ten-line example"


def test_no_placeholder_is_left_in_a_page():
    for page in (ROOT / "README.md", *(ROOT / "projects" / "CDGCNet").glob("*.md")):
        left = re.findall(r"\b[A-Z]+_(?:SECTION|TABLE|NUMBER)\b|\bTODO\b", page.read_text("utf-8"))
        assert not left, f"{page.name}: {left}"
