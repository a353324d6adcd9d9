"""Shared by all tests: import paths, Hypothesis profiles, seeded generators."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
# The folder tests/cdgc would pass for a namespace package `cdgc` when the project is found by an
# import hook only (editable installs), so the project's folder is put on the path itself.
for folder in (TESTS, TESTS.parent / "projects" / "CDGCNet"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# No deadline: the first call of a torch kernel may take a second. No database: examples are
# seeds, and a failure prints them.
settings.register_profile("dev", deadline=None, database=None)
settings.register_profile("ci", deadline=None, database=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Every test begins with torch's default: commands that ran in this process change it."""
    torch.set_flush_denormal(False)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def gpu():
    """The device of a test that is marked ``gpu``; CDGC_TEST_GPU=cpu rehearses such tests."""
    device = os.environ.get("CDGC_TEST_GPU", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return device


# ---- a tiny run: used by tests/cdgcnet/test_{loader,evaluation,trainer,run}.py, tests/tools ----


@pytest.fixture(scope="session")
def run_root(tmp_path_factory):
    """A dataset folder with a small Cityscapes tree: 6 training and 3 validation scenes."""
    from cdgcnet.data.synthetic.writer import write_street_scenes

    root = tmp_path_factory.mktemp("datasets")
    write_street_scenes(root / "cityscapes", num_train=6, num_val=3, height=64, width=96)
    return root


@pytest.fixture
def run_data(run_root, monkeypatch):
    """DETECTRON2_DATASETS points at the tiny scenes and everything is registered there."""
    from cdgcnet import register_all

    monkeypatch.setenv("DETECTRON2_DATASETS", str(run_root))
    register_all()
    return run_root


@pytest.fixture
def clean_logging():
    """Without it Detectron2's log handlers would keep writing into the folders of earlier tests."""
    import logging

    from detectron2.utils import logger as d2_logger

    yield
    for name in ("detectron2", "fvcore", "cdgcnet", "cdgc"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
        log.propagate = True
    d2_logger.setup_logger.cache_clear()


@pytest.fixture(scope="session")
def run_yaml(tmp_path_factory):
    """The config file of a net that trains in milliseconds: 8 channels, 33 x 33 crops."""
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(
        """
MODEL:
  META_ARCHITECTURE: CDGCSegmentor
  DEVICE: cpu
  WEIGHTS: from_scratch
  RESNETS: {DEPTH: 18, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8, NORM: BN}
  SEM_SEG_HEAD: {NUM_CLASSES: 19, NORM: BN, ASPP_CHANNELS: 8, ASPP_DILATIONS: [1, 2, 3]}
  CDGC:
    NORM: BN
    NODES: dynamic
    RECEIVERS: nodes
    SOFTMAX: class
    CHANNELS: 8
    AUX_CHANNELS: 8
    DROPOUT: 0.1
    EASY_RATIO: 0.5
    LOSS: {OHEM_MIN_KEPT: 0.25}
INPUT:
  CROP: {SIZE: [33, 33]}
DATASETS:
  TRAIN: ("cdgc_cityscapes_train",)
  TEST: ("cdgc_cityscapes_val",)
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {BASE_LR: 0.02, IMS_PER_BATCH: 2, MAX_ITER: 4, CHECKPOINT_PERIOD: 2}
TEST:
  EVAL_PERIOD: 0
  PICTURES: False
  AUG: {SCALES: [0.5, 1.0]}
SEED: 3
VERSION: 2
""",
        encoding="utf-8",
    )
    return path


@pytest.fixture
def run_cfg(run_yaml, tmp_path):
    """A checked, unfrozen tiny config that writes into the test's own folder."""
    from cdgcnet import load_cfg

    return load_cfg(str(run_yaml), ["OUTPUT_DIR", str(tmp_path / "run")])
