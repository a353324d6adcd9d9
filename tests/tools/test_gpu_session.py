"""tools/gpu_session.sh: every command that it would run exists and knows its options."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from cdgcnet import load_cfg
from cdgcnet.cli import compare, experiments

ROOT = experiments.ROOT
SCRIPT = ROOT / "tools" / "gpu_session.sh"
PIECES = ("exactness", "claims", "recipes", "evidence")


def session(*arguments):
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=60)


def commands(*arguments):
    """The words of each command that a call would run."""
    result = session("--dry-run", *arguments)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("#")]


def options(words):
    return {word for word in words if re.fullmatch("--[a-z-]+", word)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "in pieces that fit"),
        (["everything"], "in pieces that fit"),
        (["claims", "--minutes"], "in pieces that fit"),
        (["--minutes", "ten", "claims"], "--minutes is ten; expected a whole number"),
        (["--wheels", "/nowhere", "claims"], "--wheels /nowhere: no such folder"),
        (["evidence"], "--weights is missing: evidence needs a weight file"),
        (["--weights", str(SCRIPT), "evidence"], "needs DETECTRON2_DATASETS with voc_animals/"),
    ],
)
def test_mistakes_are_found_before_anything_runs(arguments, message, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/nowhere")
    result = session(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_wheels_are_installed_first(tmp_path):
    (tmp_path / "one.whl").touch()
    first, second = commands("--wheels", str(tmp_path), "exactness")
    assert first[:4] == ["python3", "-m", "pip", "install"]
    assert first[-1] == str(tmp_path / "one.whl")
    assert second[:4] == ["python3", "-m", "pytest", "-q"]


@pytest.mark.parametrize("rehearse", [[], ["--rehearse"]])
def test_rows_heads_and_configs_exist(rehearse, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    heads, *tables = commands(*rehearse, "--weights", "w.pth", "evidence")
    assert heads[:4] == ["python3", "-m", "cdgcnet", "compare"]
    assert [words[:3] for words in tables] == [["python3", "tools/run_experiments.py", "all"]] * 2
    for module, words in ((compare, heads[4:]), *((experiments, words[2:]) for words in tables)):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        args = parser.parse_args(words)
        if module is compare:
            assert (ROOT / args.config_file).is_file()
            assert len(args.heads.split("graph")) == 3  # the default and the paper's letter
        else:
            experiments.check_arguments(args)
            names = [path.stem for path in (experiments.CONFIGS / "rows").glob("*.yaml")]
            for row in args.rows:
                assert len([name for name in names if row in name]) == 1, row
            profile = experiments.PROFILES / f"{args.profile}.yaml"
            load_cfg(str(profile), args.opts)


@pytest.mark.slow
def test_benchmarks_know_their_options():
    pieces = ("claims", "recipes")
    used = {}
    for words in [*commands(*pieces), *commands("--rehearse", *pieces)]:
        used[words[1]] = used.get(words[1], set()) | options(words)
    assert len(used) == 3
    for script, found in used.items():
        usage = subprocess.run(
            [sys.executable, "-W", "ignore", ROOT / script, "--help"],
            capture_output=True,
            text=True,
        )
        assert usage.returncode == 0, usage.stderr
        assert found <= options(re.split(r"[\s,\[\]=]+", usage.stdout))
