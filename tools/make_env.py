#!/usr/bin/env python
"""Make, check or repair this clone's environment, `.venv`, with Python's standard library only.

    python3 tools/make_env.py

A complete environment is recognized in well under a second. Anything else (none yet, one cut off
half-way, a package removed, a Python that is gone) is brought to the same end state by the same
steps. Your pip configuration is used as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
TESTED_PYTHON = "3.11"  # the Python that requirements-tested.txt was made with
STAMP = "cdgcnet-env.json"  # in .venv; says that it is ours and, once filled in, that it is whole
INPUTS = ("pyproject.toml", "requirements-tested.txt", "tools/install_detectron2.py")

# Runs in the environment's Python. It imports nothing of what it checks, so it is fast.
# "broken" are packages whose metadata is there without their files: pip would skip those.
PROBE = """\
import importlib.metadata, importlib.util, json, os, re, sys
installed, broken = {}, []
for dist in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", dist.metadata["Name"] or "?").lower()
    record = dist.read_text("RECORD") or ""
    tops = {line.split(",")[0].split("/")[0] for line in record.splitlines()}
    tops -= {"..", "__pycache__", ""}
    # pip lists its own INSTALLER file last: without that line the installation was cut off
    whole = "/INSTALLER," in record and all(os.path.lexists(dist.locate_file(t)) for t in tops)
    if whole:
        installed[name] = dist.version
    else:
        broken.append(str(dist._path))
specs = {n: importlib.util.find_spec(n) for n in ("detectron2", "cdgc", "cdgcnet")}
found = {n: spec.origin for n, spec in specs.items() if spec is not None and spec.origin}
python = ".".join(map(str, sys.version_info[:3]))
print(json.dumps(dict(python=python, installed=installed, broken=broken, found=found)))
"""


class EnvError(Exception):
    """Something the user can act on; the message says what and how."""


def check_caller(version: tuple[int, ...] = tuple(sys.version_info[:2])) -> None:
    """The Python that runs this script makes the environment: it must be recent enough."""
    if version < OLDEST_PYTHON:
        raise EnvError(
            f"this is Python {'.'.join(map(str, version))} ({sys.executable}); CDGCNet needs 3.10 "
            "or newer.\nName another one: make env PYTHON=python3.11"
        )


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def probe(venv: Path) -> dict[str, Any] | None:
    """What the environment holds, or None where its Python does not run."""
    command = [str(python_of(venv)), "-I", "-c", PROBE]
    try:
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return json.loads(result.stdout)
    except (OSError, ValueError):
        return None


def key_of(root: Path, python: str) -> str:
    """Changes when anything that decides the environment's content changes."""
    digest = hashlib.sha256(python.encode())
    for name in INPUTS:
        digest.update(f"\n{name}\n".encode() + (root / name).read_bytes())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict[str, Any]:
    """The stamp's content; {} for none, or for an environment that was not finished."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: dict[str, Any]) -> None:
    """Write the stamp whole or not at all."""
    fresh = venv / (STAMP + ".new")
    fresh.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, venv / STAMP)


def why_incomplete(root: Path, stamp: dict[str, Any], state: dict[str, Any]) -> str | None:
    """None for an environment that is complete, else the reason in a few words."""
    if not stamp:
        return "it was not finished"
    if stamp.get("key") != key_of(root, state["python"]):
        return "the project's requirements changed"
    for name, version in stamp["installed"].items():
        if state["installed"].get(name) != version:
            return f"{name} is {state['installed'].get(name, 'missing')}, expected {version}"
    return why_not_importable(root, state)


def why_not_importable(root: Path, state: dict[str, Any]) -> str | None:
    """None where detectron2 and this very clone's packages are found, else the reason."""
    for name in ("detectron2", "cdgc", "cdgcnet"):
        if name not in state["found"]:
            return f"{name} is not importable"
        # a copied clone carries an environment that still points at the original's source
        if name != "detectron2" and root not in Path(state["found"][name]).resolve().parents:
            return f"{name} comes from {state['found'][name]}"
    return None


def empty_venv(venv: Path) -> None:
    """Delete what is in an environment whose Python does not run, if it is surely ours."""
    owned = (venv / "pyvenv.cfg").is_file() or (venv / STAMP).is_file()
    if venv.is_symlink() or not venv.is_dir() or (any(venv.iterdir()) and not owned):
        raise EnvError(
            f"{venv} exists, but is not an environment this script made (no pyvenv.cfg and no "
            f"{STAMP} in a folder of its own). Nothing was deleted: move it away, then try again."
        )
    write_stamp(venv, {})  # stays till the end: if this is cut off, the rest is still known as ours
    for child in venv.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != STAMP:
            child.unlink()


def create_venv(venv: Path) -> None:
    venv.mkdir(exist_ok=True)
    write_stamp(venv, {})  # before all else: one cut off from here on is known to be ours
    run("making .venv", [sys.executable, "-m", "venv", str(venv)])


def run(step: str, command: list[str]) -> None:
    """Run one step, with its own output on the terminal."""
    print(f"make_env: {step}", flush=True)
    # close_fds=False: a child that outlives a killed make_env keeps the lock until it is done
    status = subprocess.run(command, stdin=subprocess.DEVNULL, close_fds=False).returncode
    if status != 0:
        raise EnvError(
            f"the step '{step}' failed (exit status {status}); its messages are above.\n"
            "Call this again once the cause is gone: what is there already is kept."
        )


def pip_steps(root: Path, python: str) -> list[tuple[str, list[str]]]:
    """The pip calls that fill the environment, as (what for, arguments), in order."""
    if python.rpartition(".")[0] != TESTED_PYTHON:
        print(
            f"make_env: Python {python}: the pinned set was tested on {TESTED_PYTHON} only, so "
            "versions are chosen by the ranges of pyproject.toml"
        )
        first = ["torch>=2.6", "torchvision", "setuptools>=77", "wheel"]
        return [
            ("PyTorch", first),
            ("this project and what it needs", ["--editable", f"{root}[data,test]"]),
        ]
    tested = root / "requirements-tested.txt"
    pins = re.findall(r"(?m)^(?:torch|torchvision)==\S+", tested.read_text(encoding="utf-8"))
    editable = ["--no-deps", "--no-build-isolation", "--editable", str(root)]
    return [
        ("PyTorch", pins),
        ("the tested set of packages", ["--requirement", str(tested)]),
        ("this project", editable),
    ]


def clear_damage(venv: Path, state: dict[str, Any]) -> None:
    """Remove what an installation that was cut off left behind, so that pip installs it anew."""
    damaged = [Path(folder) for folder in state["broken"]]
    if "detectron2" in state["found"] and "detectron2" not in state["installed"]:
        # files without metadata: the installer would take them for a Detectron2 of the user's
        damaged.append(Path(state["found"]["detectron2"]).parent)
    for folder in damaged:
        if venv.resolve() in folder.resolve().parents:
            print(f"make_env: {folder.name} is damaged and will be installed anew")
            shutil.rmtree(folder)


def fill_venv(root: Path, venv: Path, state: dict[str, Any]) -> None:
    """Install all that is missing; complete packages stay as they are."""
    clear_damage(venv, state)
    pip = [str(python_of(venv)), "-I", "-m", "pip", "install", "--disable-pip-version-check"]
    for what, arguments in pip_steps(root, state["python"]):
        run(f"installing {what}", [*pip, "--no-input", *arguments])
    installer = str(root / "tools" / "install_detectron2.py")
    run("installing Detectron2", [str(python_of(venv)), "-I", installer])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one call work at a time, where the system has file locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(path, "w") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("make_env: waiting for another call that works on .venv", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ensure(root: Path) -> None:
    """Bring `<root>/.venv` to its complete state, from whatever state it is in."""
    venv = root / ".venv"
    there = os.path.lexists(venv)
    state = probe(venv) if there else None
    if state is None:
        if there:
            print("make_env: the Python of .venv does not run")
            empty_venv(venv)
        create_venv(venv)
        state = probe(venv)
        if state is None:
            raise EnvError(f"{python_of(venv)} does not run, although it was just made")
    if tuple(map(int, state["python"].split(".")[:2])) < OLDEST_PYTHON:
        raise EnvError(f"{venv} has Python {state['python']}, older than 3.10: delete it first")
    reason = why_incomplete(root, read_stamp(venv), state)
    if reason is None:
        print(f"make_env: .venv is complete (Python {state['python']})")
        return
    if there:
        print(f"make_env: .venv: {reason}")
    write_stamp(venv, {})
    fill_venv(root, venv, state)
    state = probe(venv)
    failed = "its Python does not run" if state is None else why_not_importable(root, state)
    if state is None or failed:
        raise EnvError(f"{venv} was filled, but {failed}; delete .venv and call this again")
    write_stamp(venv, {"key": key_of(root, state["python"]), "installed": state["installed"]})
    print(f"make_env: .venv is ready (Python {state['python']})")


def main() -> int:
    try:
        check_caller()
        with locked(ROOT / ".venv.lock"):
            ensure(ROOT)
    except EnvError as error:
        print(f"make_env: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake_env: interrupted; the next call goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
