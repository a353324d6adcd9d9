"""cdgcnet install-detectron2: every edit, every refusal. No network, nothing is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from cdgcnet.cli import install_detectron2 as tool
from cdgcnet.cli.main import main

INIT = '__version__ = "0.6"\n'
# One place for each edit, as v0.6 writes it.
OLD_SOURCE = {
    "detectron2/__init__.py": INIT,
    "detectron2/data/transforms.py": "interp = Image.LINEAR\n",
    "detectron2/layers/mask_ops.py": "mask = np.array(mask, copy=False)\n",
    "detectron2/evaluation/sem_seg.py": "a = np.zeros(3, dtype=np.int)\n",
    "detectron2/model_zoo/model_zoo.py": (
        "import os\nimport pkg_resources\n\n"
        "cfg_file = pkg_resources.resource_filename(\n"
        '    "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        ")\n"
    ),
    "projects/DeepLab/deeplab/__init__.py": "",
    "projects/PointRend/point_rend/__init__.py": "",
    "projects/Panoptic-DeepLab/panoptic_deeplab/__init__.py": "",
    "configs/Base.yaml": "VERSION: 2\n",
    "LICENSE": "Apache\n",
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "checkout", OLD_SOURCE)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment without Detectron2."""
    monkeypatch.setattr(tool, "find_installed", lambda: None)


def edited(text: str, tmp_path: Path) -> str:
    (tmp_path / "module.py").write_text(text)
    for edit in tool.EDITS:
        tool.apply_edit(edit, tmp_path, exact=False)
    return (tmp_path / "module.py").read_text()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("interp=Image.LINEAR, fill=0", "interp=Image.BILINEAR, fill=0"),
        ("x.astype(np.bool)", "x.astype(bool)"),
        ("dtype=np.int)", "dtype=int)"),
        ("np.full(3, np.nan, dtype=np.float)", "np.full(3, np.nan, dtype=float)"),
        ("np.object, np.str", "object, str"),
        ("np.array(mask, copy=False)", "np.asarray(mask)"),
        ("import pkg_resources\n", "from importlib import resources\n"),
        (
            'f = pkg_resources.resource_filename(\n    "a.b", os.path.join("configs", path)\n)',
            'f = str(resources.files("a.b") / os.path.join("configs", path))',
        ),
        (
            "from torch.cuda.amp import GradScaler\n\ngrad_scaler = GradScaler()\n",
            "from torch.amp import GradScaler\n\ngrad_scaler = GradScaler()\n",
        ),
        (
            "from torch.cuda.amp import autocast\n\nstart = 0\nwith autocast():\n    x = 1\n",
            'from torch.amp import autocast\n\nstart = 0\nwith autocast("cuda"):\n    x = 1\n',
        ),
    ],
)
def test_edits(tmp_path: Path, before: str, after: str) -> None:
    assert edited(before, tmp_path) == after


@pytest.mark.parametrize(
    "text",
    [
        "np.bool_, np.int_, np.int64, np.float32, np.float64, np.str_, np.object_, np.integer",
        "jnp.int, np.interp(x), np.floating, np.intp, np.strings",
        "Image.BILINEAR, Image.NEAREST, MyImage.LINEARITY",
        "DatasetFromList(dataset, copy=False)",
        # as Detectron2's main branch has it
        "from torch.cuda.amp import autocast\nwith autocast(dtype=self.precision):\n    x = 1\n",
    ],
)
def test_edits_leave_the_rest(tmp_path: Path, text: str) -> None:
    assert edited(text, tmp_path) == text


@pytest.mark.parametrize("edit", tool.EDITS, ids=lambda edit: edit.reason)
def test_an_edit_that_does_not_match_fails(tmp_path: Path, edit: tool.Edit) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")
    with pytest.raises(tool.InstallError, match=f"0 places match, expected {edit.expected}"):
        tool.apply_edit(edit, tmp_path, exact=True)


@pytest.mark.parametrize("text", ["from pkg_resources import x", "a = 1\nb = np.bool\n"])
def test_leftovers_are_named_with_file_and_line(tmp_path: Path, text: str) -> None:
    package = write_tree(tmp_path, {"detectron2/bad.py": text}) / "detectron2"
    line = text.count("\n", 0, text.find("np.bool")) + 1 if "np.bool" in text else 1
    with pytest.raises(tool.InstallError, match=rf"detectron2.bad\.py:{line}: "):
        tool.check_no_leftovers(package)


def test_prepare_a_checkout(tmp_path: Path, source: Path) -> None:
    before = snapshot(source)
    (tmp_path / "build").mkdir()
    assert tool.prepare(source, tmp_path / "build", exact=False) == "0.6+purepython"
    package = tmp_path / "build" / "detectron2"
    for name in ("deeplab", "point_rend", "panoptic_deeplab"):
        assert (package / "projects" / name / "__init__.py").is_file()
    assert (package / "model_zoo" / "configs" / "Base.yaml").is_file()
    assert 'version = "0.6+purepython"' in (tmp_path / "build" / "pyproject.toml").read_text()
    compile((package / "model_zoo" / "model_zoo.py").read_text(), "model_zoo.py", "exec")
    assert snapshot(source) == before  # the user's checkout stays as it is


def test_prepare_an_already_current_checkout(tmp_path: Path) -> None:
    current = dict.fromkeys(OLD_SOURCE, "") | {"detectron2/__init__.py": INIT}
    source = write_tree(tmp_path / "checkout", current)
    (tmp_path / "build").mkdir()
    assert tool.prepare(source, tmp_path / "build", exact=False) == "0.6+purepython"


def test_compiled_files_of_a_checkout_stay_out(tmp_path: Path, source: Path) -> None:
    write_tree(source, {"detectron2/_C.cpython-311.so": "x", "detectron2/layers/csrc/a.cpp": "x"})
    (tmp_path / "build").mkdir()
    package = tool.collect_tree(source, tmp_path / "build")
    assert not list(package.rglob("*.so")) + list(package.rglob("csrc"))


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.usefixtures("absent")
def test_source_that_is_no_detectron2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    path = tmp_path / "nothing"
    if exists:
        path.mkdir()
    assert main(["install-detectron2", "--source", str(path)]) == 1
    assert f"{path}: expected a Detectron2 checkout" in capsys.readouterr().err


@pytest.mark.usefixtures("absent")
def test_wrong_hash_installs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "pb1-detectron2-0.6.tar.gz"
    archive.write_bytes(b"something else")
    monkeypatch.setattr(tool, "run_python", lambda *command: pytest.fail(f"ran {command}"))
    assert main(["install-detectron2", "--sdist", str(archive)]) == 1
    message = capsys.readouterr().err
    assert hashlib.sha256(b"something else").hexdigest() in message
    assert tool.SDIST_SHA256 in message


@pytest.mark.usefixtures("absent")
def test_missing_sdist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-detectron2", "--sdist", str(tmp_path / "gone.tar.gz")]) == 1
    assert "gone.tar.gz: no such file" in capsys.readouterr().err


def test_right_hash_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(b"content")
    monkeypatch.setattr(tool, "SDIST_SHA256", hashlib.sha256(b"content").hexdigest())
    tool.check_hash(archive)


@pytest.mark.skipif(not hasattr(tarfile, "data_filter"), reason="Python without tarfile filters")
def test_unpack_lets_nothing_out_of_its_folder(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../outside.txt"), io.BytesIO())
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.FilterError):
        tool.unpack(archive, tmp_path / "in")
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.usefixtures("absent")
def test_no_network_names_the_alternatives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution\n")

    monkeypatch.setattr(subprocess, "run", offline)
    monkeypatch.setattr(tool, "check_prerequisites", lambda: None)
    assert main(["install-detectron2"]) == 1
    message = capsys.readouterr().err
    assert "pip download failed" in message
    assert "No matching distribution" in message
    assert "git+https://github.com/facebookresearch/detectron2.git" in message
    assert "--source PATH" in message
    assert len(calls) == 1
    assert not [argument for argument in calls[0] if "index" in argument]


@pytest.mark.usefixtures("absent")
def test_torch_comes_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` raise ImportError
    assert main(["install-detectron2"]) == 1
    message = capsys.readouterr().err
    assert "cannot import torch" in message
    assert "python -m pip install torch torchvision" in message


def test_an_existing_detectron2_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, {"detectron2/__init__.py": '__version__ = "0.7"\n'})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr(tool, "verify", lambda *modules: "")
    monkeypatch.setattr(tool, "install", lambda *_: pytest.fail("installed over it"))
    assert main(["install-detectron2"]) == 0
    place = tmp_path / "detectron2"
    assert f"already installed, not changed: detectron2 0.7 at {place}" in capsys.readouterr().out


def test_a_folder_without_init_is_no_detectron2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "detectron2").mkdir()
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert tool.find_installed() is None


def test_version_line_is_required(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    with pytest.raises(tool.InstallError, match="is this Detectron2"):
        tool.read_version(tmp_path)


@pytest.fixture
def stub(tmp_path: Path) -> ModuleType:
    path = tmp_path / "_C.py"
    path.write_text(tool.C_STUB)
    spec = importlib.util.spec_from_file_location("detectron2._C", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def test_stub_names_the_operator_and_the_way_out(stub: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match=r"_C\.deform_conv_forward is a compiled") as info:
        stub.deform_conv_forward(1, 2, key=3)
    assert "git+https://github.com/facebookresearch/detectron2.git" in str(info.value)


def test_stub_bears_introspection(stub: ModuleType) -> None:
    assert not hasattr(stub, "__wrapped__")
    assert not hasattr(stub, "_private")
    assert inspect.unwrap(stub) is stub  # type: ignore[arg-type]
    assert dict(inspect.getmembers(stub))["has_cuda"]() is False
    assert "pure-Python" in stub.get_compiler_version()
    assert "pure-Python" in stub.get_cuda_version()


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (
            "import cv2: ImportError: libGL.so.1: cannot open shared object file",
            ["system library libGL.so.1 (libgl1", "pip install opencv-python-headless"],
        ),
        (
            "import cv2: ImportError: libgthread-2.0.so.0: cannot open shared object file",
            ["system library libgthread-2.0.so.0.", "pip install opencv-python-headless"],
        ),
        (
            "import detectron2: ModuleNotFoundError: No module named 'fvcore'",
            ["'fvcore'", "with pip"],
        ),
        ("import detectron2: RuntimeError: other", ["RuntimeError: other"]),
    ],
)
def test_failed_imports_are_explained(reason: str, expected: list[str]) -> None:
    message = tool.explain_import_failure(reason)
    assert message.startswith(reason)
    assert all(part in message for part in expected)


def test_verify_reports_the_import_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "VERIFY", "import sys; sys.exit(f'import {sys.argv[1]}: broken')")
    with pytest.raises(
        tool.InstallError, match="does not work:\nimport some_module: broken\nTo install it anew"
    ):
        tool.verify("some_module")
