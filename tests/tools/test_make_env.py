"""`make env`: what it calls and in which order, with stand-ins for Python and pip."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Plays `python3`: records its arguments; makes a .venv that holds a copy of itself.
PYTHON = """#!/bin/sh
echo "$@" >> {root}/calls.txt
case "$*" in
    "-m venv --clear .venv") rm -rf .venv ;;
esac
case "$*" in
    "-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *sys.version_info*) exit {other_python} ;;
    *version*) exit {broken} ;;
    *"$FAIL_AT"*) [ -z "$FAIL_AT" ] || exit 3 ;;
esac
"""


@pytest.fixture
def clone(tmp_path):
    for name in ("Makefile", "pyproject.toml", "setup.py", "requirements-tested.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def make_env(clone):
    """``make_env()``: runs it; returns what it called."""

    def call(code=0, fail_at="", other_python=0, broken=0) -> list[str]:
        python = clone / "python"
        script = PYTHON.format(root=clone, other_python=other_python, broken=broken)
        python.write_text(script)
        python.chmod(0o755)
        if (clone / ".venv" / "bin").is_dir():
            shutil.copy(python, clone / ".venv" / "bin" / "python")
        calls = clone / "calls.txt"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["make", "env", f"PYTHON={python}"],
            cwd=clone,
            capture_output=True,
            text=True,
            timeout=60,
            env={k: v for k, v in os.environ.items() if k != "MAKEFLAGS"} | {"FAIL_AT": fail_at},
        )
        assert (done.returncode != 0) == (code != 0), done.stderr
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line for line in lines if "-c" not in line.split()]

    return call


INSTALL = [
    "-m pip install --no-input --requirement requirements-tested.txt",
    "-m pip install --no-input --no-deps --no-build-isolation --editable .",
    "tools/install_detectron2.py",
]


def test_a_new_environment_and_a_complete_one(make_env, clone):
    assert make_env() == ["-m venv .venv", *INSTALL]
    assert (clone / ".venv" / "complete").is_file()
    assert not (clone / ".venv.incomplete").exists()
    assert make_env() == []


def test_other_pythons_get_ranges_instead_of_pins(make_env):
    [_, install, _] = make_env(other_python=1)
    assert "--editable .[data,test,docs]" in install and "requirements-tested" not in install


@pytest.mark.parametrize("step", ["requirement", "editable", "install_detectron2"])
def test_an_installation_that_was_cut_off_is_made_anew(make_env, clone, step):
    make_env(code=2, fail_at=step)
    assert not (clone / ".venv" / "complete").exists()
    assert make_env() == ["-m venv --clear .venv", *INSTALL]


def test_changed_requirements_are_installed_on_top(make_env, clone):
    make_env()
    later = (clone / ".venv" / "complete").stat().st_mtime + 10
    os.utime(clone / "pyproject.toml", (later, later))
    assert make_env() == ["-m venv .venv", *INSTALL]


def test_an_environment_that_does_not_import_is_repaired(make_env):
    make_env()
    assert make_env(broken=1) == ["-m venv .venv", *INSTALL]


def test_a_link_is_not_filled(make_env, clone):
    (clone / "elsewhere").mkdir()
    (clone / ".venv").symlink_to(clone / "elsewhere")
    assert make_env(code=2) == []
    assert not any((clone / "elsewhere").iterdir())
