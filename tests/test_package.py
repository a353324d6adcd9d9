"""The wheel, in an environment of its own and an empty folder: configs, commands, training."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdgcnet

ROOT = Path(__file__).resolve().parent.parent
UNTRACKED = {".git", ".venv", ".cache", "output", "datasets", "build", "dist", "site"}
CONFIG = "Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml"
pytestmark = pytest.mark.slow


def untracked(folder: str, names: list[str]) -> set[str]:
    """What a copy of the checkout leaves out."""
    found = {n for n in names if n.endswith((".egg-info", "_cache", "__pycache__"))}
    return found | (UNTRACKED & set(names) if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the source archive, built from a copy so that no earlier build enters them."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "source", ignore=untracked)
    code = (
        "import sys; from setuptools import build_meta; folder = sys.argv[1]\n"
        "build_meta.build_sdist(folder); build_meta.build_wheel(folder)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, folder],
        cwd=folder / "source",
        check=True,
        capture_output=True,
        timeout=300,
    )
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory):
    """Python of a new environment with the wheel; other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # What comes from pip is shared, but .pth files there are not read: the checkout stays out.
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(site)
    return Path(sysconfig.get_path("scripts", "venv", vars=paths)) / "python"


@pytest.fixture
def run(installed, run_root, tmp_path):
    """``run("-m", "cdgcnet", …)``: the new environment's Python in an empty folder."""

    def call(*words, code=0) -> subprocess.CompletedProcess:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [installed, *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            env=environment | {"OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(run_root)},
        )
        assert done.returncode == code, done.stderr[-3000:]
        return done

    return call


def test_contents_of_the_wheel(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        names = wheel.namelist()
    shipped = {n.removeprefix("cdgcnet/configs/") for n in names if n.endswith(".yaml")}
    configs = {str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")}
    assert shipped == {name for name in configs if not name.startswith("experiments/")}
    assert {"cdgc/py.typed", "cdgcnet/py.typed"} <= set(names)
    lists = {f"cdgcnet/data/prepare/lists/voc_animals_{split}.txt" for split in ("train", "val")}
    assert lists <= set(names)
    assert not [n for n in names if n.startswith(("tests", "tools", "cdgcnet/experiments"))]


def test_the_source_archive_is_complete(archives):
    with tarfile.open(archives[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\n")
    missing = {n for n in tracked if n and not n.startswith(".github")} - names - {".gitignore"}
    assert not missing


def test_the_installed_package(run):
    code = (
        "import cdgcnet, cdgc; print(cdgcnet.__version__, cdgcnet.__file__);"
        f"print(cdgcnet.config_path({CONFIG!r}))"
    )
    first, config = run("-W", "ignore", "-c", code).stdout.splitlines()
    assert first.startswith(cdgcnet.__version__) and str(ROOT) not in first
    assert config.endswith(f"cdgcnet/configs/{CONFIG}") and str(ROOT) not in config
    assert "cdgcnet train" in run("-m", "cdgcnet", "train", "--help").stdout


def test_experiments_need_a_checkout(run):
    done = run("-m", "cdgcnet", "experiments", "table1", "--profile", "tiny", code=1)
    assert "experiments need a checkout" in done.stderr and "Traceback" not in done.stderr


def test_training_and_prediction(run, tmp_path):
    tiny = ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "MODEL.WEIGHTS", "from_scratch"]
    tiny += ["DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path / "run"]
    tiny += ["DATASETS.TRAIN", "('cdgc_cityscapes_train',)"]
    tiny += ["DATASETS.TEST", "('cdgc_cityscapes_val',)"]
    run("-m", "cdgcnet", "train", "--config-file", CONFIG, *tiny)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0 <= results["sem_seg"]["mIoU"] <= 100

    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    weights = ["--weights", tmp_path / "run" / "model_final.pth"]
    paths = ["--input", tmp_path / "street.png", "--output", tmp_path / "labels"]
    run("-m", "cdgcnet", "predict", "--config-file", CONFIG, *weights, *paths)
    assert np.asarray(Image.open(tmp_path / "labels" / "street.png")).shape == (48, 64)
