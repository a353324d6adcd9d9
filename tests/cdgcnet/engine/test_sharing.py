"""A model saved in a folder and loaded again is the same model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import cdgcnet
from cdgcnet import Predictor, load_cfg
from cdgcnet.engine.sharing import model_card

NAMES = ["road", "a|b", "<script>", "sky", "*car*"]
COLORS = [[i, 10 * i, 255 - i] for i in range(5)]


@pytest.fixture
def predictor(tiny_cfg, build, tmp_path):
    cfg = tiny_cfg({"DATASETS.TRAIN": ("my_train",)})
    cfg.OUTPUT_DIR = "/home/somebody/run"
    cfg.INPUT.CACHE = "/home/somebody/cache"
    cfg.MODEL.TIMM.PRETRAINED = "/home/somebody/resnet50.pth"
    cfg.MODEL.CLASS_NAMES, cfg.MODEL.CLASS_COLORS = NAMES, COLORS
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    torch.save({"model": build(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return Predictor(cfg)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (41, 57, 3), dtype=np.uint8)


def test_round_trip_is_bit_identical(predictor, image, tmp_path):
    folder = tmp_path / "shared"
    predictor.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.yaml", "README.md"}
    again = Predictor.from_pretrained(folder, device="cpu")
    state = again.model.state_dict()
    assert state.keys() == predictor.model.state_dict().keys()
    for name, value in predictor.model.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name
    assert torch.equal(again(image)["sem_seg"], predictor(image)["sem_seg"])
    assert again.metadata.stuff_classes == NAMES
    assert [list(color) for color in again.metadata.stuff_colors] == COLORS


def test_the_code_in_the_card_runs_in_a_fresh_interpreter(predictor, image, tmp_path):
    predictor.save_pretrained(tmp_path / "FOLDER")
    card = (tmp_path / "FOLDER" / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.+?)```", card, re.S)
    cv2.imwrite(str(tmp_path / "image.jpg"), image)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{example}\nprint(labels.shape)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cdgcnet.__file__).parents[1])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("(41, 57)")


def test_paths_of_the_machine_stay_at_home(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "shared")
    for name in ("config.yaml", "README.md"):
        text = (tmp_path / "shared" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text and "/home/somebody" not in text


def test_the_card_has_the_measured_scores(predictor, tmp_path):
    results = tmp_path / "results.json"
    tasks = {"sem_seg_coarse": {"mIoU": 40.126}, "sem_seg": {"mIoU": 42.0, "mBIoU": None}}
    results.write_text(json.dumps({"my_val": tasks, "other": {"sem_seg": {"mIoU": 7.0}}}))
    predictor.save_pretrained(tmp_path / "shared", results)
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    assert "| mIoU | 40.13 | 42.00 |" in card and "| mIoU | 7.00 |" in card
    assert "On `my_val`" in card and "my\\_train" in card and "ResNet-18" in card
    assert "boundary" not in card
    assert "a\\|b" in card and "<script>" not in card  # names are text


def test_a_card_without_scores_says_so(tiny_cfg):
    assert "No measured scores" in model_card(tiny_cfg(), {})


@pytest.mark.parametrize(
    ("builder", "named"),
    [
        ("build_dilated_resnet_backbone", "ResNet-18"),
        ("build_timm_backbone", "convnext\\_tiny (timm)"),
        ("build_resnet_fpn_backbone", "build\\_resnet\\_fpn\\_backbone"),
    ],
)
def test_the_card_names_the_backbone(tiny_cfg, builder, named):
    cfg = tiny_cfg({"MODEL.TIMM.NAME": "convnext_tiny"})
    cfg.MODEL.BACKBONE.NAME = builder
    assert f"| backbone | {named} |" in model_card(cfg, {})


def test_nothing_is_overwritten(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "shared")
    with pytest.raises(ValueError, match="not an empty folder"):
        predictor.save_pretrained(tmp_path / "shared")
    predictor.save_pretrained(tmp_path / "new" / "folder")


def test_folders_that_are_no_model(predictor, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        Predictor.from_pretrained(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        Predictor.from_pretrained(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'cdgcnet\[hub\]'"):
        Predictor.from_pretrained("owner/name")


def test_the_hub_is_asked_only_on_request(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="add download=True"):
        Predictor.from_pretrained("owner/name")


def test_a_model_from_the_hub(predictor, image, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    predictor.save_pretrained(tmp_path / "shared")
    asked = []

    def fetch(name, **options):
        asked.append((name, options["local_files_only"]))
        return str(tmp_path / "shared")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    again = Predictor.from_pretrained("owner/name", device="cpu", download=True)
    assert asked == [("owner/name", False)]
    assert torch.equal(again(image)["sem_seg"], predictor(image)["sem_seg"])


@pytest.fixture
def fake_hub(monkeypatch):
    """The Hub's API without the network: calls, and (files, message) of each commit by name."""
    hub = pytest.importorskip("huggingface_hub")

    class FakeApi:
        def __init__(self):
            self.created, self.commits = [], {}

        def create_repo(self, repo_id, *, private, exist_ok):
            if repo_id.startswith("stranger/"):
                raise ConnectionError("403 Forbidden: you have no rights\nRequest ID: 1")
            self.created.append((repo_id, private, exist_ok))
            return hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
            self.commits.setdefault(repo_id, []).append((files, commit_message))

    api = FakeApi()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    return api


def test_push_to_hub_uploads_the_folder(predictor, image, fake_hub, tmp_path):
    url = predictor.push_to_hub("owner/name", private=True, commit_message="First")
    assert url == "https://huggingface.co/owner/name"
    predictor.push_to_hub("owner/name")
    assert fake_hub.created == [("owner/name", True, True), ("owner/name", None, True)]
    (files, first), (again, second) = fake_hub.commits["owner/name"]
    assert (first, second) == ("First", "Upload model")
    assert files.keys() == {"model.safetensors", "config.yaml", "README.md"}
    assert files == again
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = Predictor.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(loaded(image)["sem_seg"], predictor(image)["sem_seg"])


def test_uploads_that_fail_say_why(predictor, fake_hub, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"stranger/name was not uploaded: 403 .* no rights$"):
        predictor.push_to_hub("stranger/name")
    with pytest.raises(ValueError, match=r"missing\.json"):
        predictor.push_to_hub("owner/name", results=tmp_path / "missing.json")
    assert not fake_hub.created  # nothing was created for a model that cannot be saved
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match=r"not logged in .* run `hf auth login`"):
        predictor.push_to_hub("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"pip install 'cdgcnet\[hub\]'"):
        predictor.push_to_hub("owner/name")


def test_training_can_start_from_the_folder(predictor, tmp_path):
    predictor.save_pretrained(tmp_path / "shared")
    weights = str(tmp_path / "shared" / "model.safetensors")
    cfg = load_cfg(str(tmp_path / "shared" / "config.yaml"), ["MODEL.WEIGHTS", weights])
    assert Predictor(cfg).metadata.stuff_classes == NAMES
