"""Importing has no side effects: `cdgc` needs torch alone, `cdgcnet` registers no dataset."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cdgcnet

PROJECT = Path(__file__).resolve().parents[1] / "projects" / "CDGCNet"


def run(code):
    """Runs `code` in a fresh interpreter and returns its last line of output."""
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_cdgc_imports_torch_only():
    # What `import torch` itself brings along (NumPy, perhaps) is not ours to answer for.
    loaded = run(
        "import sys, torch; before = {m.split('.')[0] for m in sys.modules}\n"
        "import cdgc\n"
        "after = {m.split('.')[0] for m in sys.modules} - before\n"
        "print(sorted(after - sys.stdlib_module_names))"
    )
    assert loaded == "['cdgc']"


def test_cdgc_leaves_detectron2_out():
    loaded = run(
        "import sys, cdgc\n"
        "print([m for m in ('detectron2', 'fvcore', 'cv2', 'cdgcnet') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_public_names():
    names = run("import cdgc; print(sorted(n for n in cdgc.__all__ if not hasattr(cdgc, n)))")
    assert names == "[]"


def test_cdgcnet_alone_imports_nothing_heavy():
    loaded = run(
        "import sys, cdgcnet\n"
        "assert 'Trainer' in dir(cdgcnet) and cdgcnet.__version__\n"
        "print([m for m in ('torch', 'numpy', 'detectron2') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_any_public_name_registers_the_network():
    # Nothing but the name of the first line is touched before Detectron2 builds the model.
    name = run(
        "from cdgcnet import load_cfg\n"
        "from detectron2.modeling import build_model\n"
        "cfg = load_cfg('', ['MODEL.DEVICE', 'cpu', 'MODEL.RESNETS.NORM', 'BN',\n"
        "    'MODEL.SEM_SEG_HEAD.NORM', 'BN', 'MODEL.CDGC.NORM', 'BN'])\n"
        "print(type(build_model(cfg)).__name__)"
    )
    assert name == "CDGCSegmentor"


def test_public_names_of_cdgcnet():
    assert sorted(cdgcnet._MODULES) == sorted(cdgcnet.__all__)
    for name in cdgcnet.__all__:
        assert getattr(cdgcnet, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Tariner'"):
        cdgcnet.Tariner  # noqa: B018


def test_cdgcnet_registers_no_dataset():
    added = run(
        "import detectron2.data, detectron2.data.datasets\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "before = set(DatasetCatalog.list()), set(MetadataCatalog.list())\n"
        "from cdgcnet import Trainer\n"
        "print(sorted(set(DatasetCatalog.list()) - before[0])\n"
        "      + sorted(set(MetadataCatalog.list()) - before[1]))"
    )
    assert added == "[]"


# Each module is imported first in a process of its own, forked after the heavy imports.
IMPORT_EACH = """
import os, sys
import torch, detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling
import cdgcnet
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            __import__(name)
        except BaseException as error:
            print(f"{name}: {error!r}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_first():
    names = [
        ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((PROJECT / "cdgcnet").rglob("*.py"))
        if path.name != "__main__.py"
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORT_EACH, *names],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        timeout=600,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(names) > 80
