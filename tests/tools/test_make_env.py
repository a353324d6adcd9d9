"""tools/make_env.py: the stamp, the repairs, and what it must never delete. No pip, no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import make_env
import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone with the three files that decide the environment's content."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "requirements-tested.txt").write_text("# set\nnumpy==2.4.6\ntorch==2.14.1\n")
    (tmp_path / "tools" / "install_detectron2.py").write_text("")
    return tmp_path


def complete_state(root: Path, python: str = "3.11.7") -> dict[str, Any]:
    source = root / "projects" / "CDGCNet"
    return {
        "python": python,
        "installed": {"numpy": "2.4.6", "torch": "2.14.1"},
        "broken": [],
        "found": {
            "detectron2": "/elsewhere/detectron2/__init__.py",
            "cdgc": str(source / "cdgc" / "__init__.py"),
            "cdgcnet": str(source / "cdgcnet" / "__init__.py"),
        },
    }


def complete_stamp(root: Path) -> dict[str, Any]:
    state = complete_state(root)
    return {"key": make_env.key_of(root, state["python"]), "installed": state["installed"]}


class FakeSystem:
    """Stands in for every subprocess; an environment becomes whole once its steps have run."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.steps: list[str] = []
        self.fail_at: str | None = None
        monkeypatch.setattr(make_env, "run", self.run)
        monkeypatch.setattr(make_env, "probe", self.probe)

    def run(self, step: str, command: list[str]) -> None:
        self.steps.append(step)
        if step == self.fail_at:
            raise make_env.EnvError(f"the step '{step}' failed")
        python = make_env.python_of(self.root / ".venv")
        if step == "making .venv":
            python.parent.mkdir(parents=True)
            python.write_text("")
            (self.root / ".venv" / "pyvenv.cfg").write_text("")
        elif step == "installing Detectron2":
            (self.root / ".venv" / "filled").write_text("")

    def probe(self, venv: Path) -> dict[str, Any] | None:
        if not make_env.python_of(venv).exists():
            return None
        state = complete_state(self.root)
        if not (venv / "filled").exists():
            state.update(installed={}, found={})
        return state


@pytest.fixture
def system(root: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    return FakeSystem(root, monkeypatch)


FILL = [
    "installing PyTorch",
    "installing the tested set of packages",
    "installing this project",
    "installing Detectron2",
]


def test_fresh_creation_then_the_second_call_does_nothing(root: Path, system: FakeSystem) -> None:
    make_env.ensure(root)
    assert system.steps == ["making .venv", *FILL]
    system.steps.clear()
    make_env.ensure(root)
    assert system.steps == []


@pytest.mark.parametrize("cut", ["making .venv", *FILL])
def test_a_call_cut_off_at_any_step_is_finished_by_the_next(
    root: Path, system: FakeSystem, cut: str
) -> None:
    system.fail_at = cut
    with pytest.raises(make_env.EnvError, match="failed"):
        make_env.ensure(root)
    assert make_env.read_stamp(root / ".venv") == {}
    system.fail_at = None
    make_env.ensure(root)
    assert make_env.read_stamp(root / ".venv") == complete_stamp(root)


def test_a_removed_python_makes_the_environment_anew(root: Path, system: FakeSystem) -> None:
    make_env.ensure(root)
    python = make_env.python_of(root / ".venv")
    python.unlink()
    python.symlink_to(root / "gone")
    system.steps.clear()
    make_env.ensure(root)
    assert system.steps == ["making .venv", *FILL]


def test_a_deletion_cut_off_is_finished_by_the_next_call(
    root: Path, system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_env.ensure(root)
    make_env.python_of(root / ".venv").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(make_env.shutil, "rmtree", lambda _: pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            make_env.ensure(root)
    (root / ".venv" / "pyvenv.cfg").unlink(missing_ok=True)
    make_env.ensure(root)
    assert make_env.read_stamp(root / ".venv") == complete_stamp(root)


def test_changed_requirements_install_again(root: Path, system: FakeSystem) -> None:
    make_env.ensure(root)
    (root / "requirements-tested.txt").write_text("numpy==2.4.7\ntorch==2.14.1\n")
    system.steps.clear()
    make_env.ensure(root)
    assert system.steps == FILL  # the environment itself is kept


@pytest.mark.parametrize("content", ["file in a folder", "link", "plain file"])
def test_a_foreign_venv_is_never_deleted(root: Path, system: FakeSystem, content: str) -> None:
    venv, elsewhere = root / ".venv", root / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "pyvenv.cfg").write_text("")
    if content == "link":
        venv.symlink_to(elsewhere)
    elif content == "plain file":
        venv.write_text("precious")
    else:
        venv.mkdir()
        (venv / "thesis.tex").write_text("precious")
    before = sorted(root.rglob("*"))
    with pytest.raises(make_env.EnvError, match="Nothing was deleted"):
        make_env.ensure(root)
    assert sorted(root.rglob("*")) == before
    assert system.steps == []


def test_only_damage_inside_the_environment_is_removed(root: Path) -> None:
    inside, outside = root / ".venv" / "numpy.dist-info", root / "src" / "cdgcnet.egg-info"
    inside.mkdir(parents=True)
    outside.mkdir(parents=True)
    make_env.clear_damage(
        root / ".venv", complete_state(root) | {"broken": [str(inside), str(outside)], "found": {}}
    )
    assert not inside.exists()
    assert outside.exists()


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("place", [".venv", "checkout of the user's"])
def test_half_a_detectron2_is_removed_from_the_environment(
    root: Path, place: str, finished: bool
) -> None:
    package = root / place / "detectron2"
    package.mkdir(parents=True)
    state = complete_state(root)
    state["found"]["detectron2"] = str(package / "__init__.py")
    if finished:
        state["installed"]["detectron2"] = "0.6+purepython"
    make_env.clear_damage(root / ".venv", state)
    assert package.exists() == (finished or place != ".venv")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: None, None),
        (lambda s: s["installed"].pop("numpy"), "numpy is missing, expected 2.4.6"),
        (lambda s: s["installed"].update(numpy="1.26.4"), "numpy is 1.26.4, expected 2.4.6"),
        (lambda s: s["installed"].update(extra="1"), None),
        (lambda s: s.update(python="3.12.1"), "the project's requirements changed"),
        (lambda s: s["found"].pop("detectron2"), "detectron2 is not importable"),
        (
            lambda s: s["found"].update(cdgc="/other/clone/cdgc"),
            "cdgc comes from /other/clone/cdgc",
        ),
    ],
)
def test_why_incomplete(root: Path, change: Any, reason: str | None) -> None:
    state, stamp = complete_state(root), complete_stamp(root)
    change(state)
    assert make_env.why_incomplete(root, stamp, state) == reason


@pytest.mark.parametrize("name", make_env.INPUTS)
def test_the_key_depends_on_every_input(root: Path, name: str) -> None:
    before = make_env.key_of(root, "3.11.7")
    (root / name).write_text("changed")
    assert make_env.key_of(root, "3.11.7") != before


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_spoilt_stamp_counts_as_unfinished(tmp_path: Path, text: str) -> None:
    (tmp_path / make_env.STAMP).write_text(text)
    assert make_env.read_stamp(tmp_path) == {}


def test_pins_only_on_the_tested_python(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pinned = make_env.pip_steps(root, "3.11.7")
    assert pinned[0] == ("PyTorch", ["torch==2.14.1"])
    assert capsys.readouterr().out == ""
    ranged = make_env.pip_steps(root, "3.12.1")
    assert "--editable" in ranged[-1][1]
    assert not any("==" in argument for _, arguments in ranged for argument in arguments)
    assert "tested on 3.11 only" in capsys.readouterr().out


def test_no_step_sets_a_package_index(root: Path) -> None:
    assert "index" not in str(
        make_env.pip_steps(root, "3.11.7") + make_env.pip_steps(root, "3.12.1")
    )


def test_old_python_is_refused() -> None:
    make_env.check_caller((3, 10))
    with pytest.raises(make_env.EnvError, match=r"this is Python 3\.9 .*needs 3\.10"):
        make_env.check_caller((3, 9))


def test_probe_sees_this_environment_and_survives_none(tmp_path: Path) -> None:
    assert make_env.probe(tmp_path) is None
    python = make_env.python_of(tmp_path)
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    state = make_env.probe(tmp_path)
    assert state is not None
    assert state["python"] == ".".join(map(str, sys.version_info[:3]))


def test_probe_tells_whole_from_damaged_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(name: str, *, files: bool = True, finished: bool = True) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        last = f"{info.name}/INSTALLER,,\n" if finished else ""
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n../../../bin/{name},,\n{last}")
        if files:
            (tmp_path / name).mkdir()

    add("Whole.Name")
    add("cutoff", finished=False)
    add("emptied", files=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    exec(make_env.PROBE, {})
    state = json.loads(capsys.readouterr().out)
    assert state["installed"] == {"whole-name": "1.0"}
    assert sorted(Path(path).name for path in state["broken"]) == [
        "cutoff-1.0.dist-info",
        "emptied-1.0.dist-info",
    ]


def test_failed_step_says_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(make_env.EnvError, match=r"'breaking' failed \(exit status 3\)"):
        make_env.run("breaking", [sys.executable, "-c", "raise SystemExit(3)"])
    assert "make_env: breaking" in capfd.readouterr().out


def test_two_calls_work_one_after_the_other(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock = tmp_path / "lock"
    with make_env.locked(lock), open(lock) as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with make_env.locked(lock):
        pass
