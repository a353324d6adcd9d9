"""tools/gpu_session.sh: its commands exist and know their options; what ends, stays and resumes."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

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
        (["--pack", "/nowhere/a.tar.gz", "claims"], "its folder does not exist"),
        (["wheels", "3.12"], "in pieces that fit"),
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
    first, second, third = commands("--wheels", str(tmp_path), "exactness")
    assert first[:4] == ["python3", "-m", "pip", "install"]
    assert first[-1] == str(tmp_path / "one.whl")
    assert second[:2] == ["python3", "benchmarks/check_machine.py"]
    assert third[:4] == ["python3", "-m", "pytest", "-q"]


@pytest.mark.parametrize("rehearse", [[], ["--rehearse"]])
def test_rows_heads_and_configs_exist(rehearse, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    _, *tables, heads = commands(*rehearse, "--weights", "w.pth", "evidence")
    assert heads[:4] == ["python3", "-m", "cdgcnet", "compare"]
    assert [words[:3] for words in tables] == [["python3", "tools/run_experiments.py", "all"]] * 2
    for module, words in ((compare, heads[4:]), *((experiments, words[2:]) for words in tables)):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        args = parser.parse_args(words)
        if module is compare:
            assert (ROOT / args.config_file).is_file()
            assert len(args.heads.split("graph")) == 3  # the default and the paper's
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
    assert len(used) == 5
    for script, found in used.items():
        usage = subprocess.run(
            [sys.executable, "-W", "ignore", ROOT / script, "--help"],
            capture_output=True,
            text=True,
        )
        assert usage.returncode == 0, usage.stderr
        assert found <= options(re.split(r"[\s,\[\]=]+", usage.stdout))


# ---------------------------------------------------------------- with stand-ins for the commands
# Notes its arguments; writes "measured" where a benchmark would write its table.
PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *"$FAIL_AT"*) [ -z "$FAIL_AT" ] || exit 3 ;; esac
case "$*" in *bench_*)
    while [ "$1" != --output ]; do shift; done
    mkdir -p "$2" && echo measured > "$2/table.md" ;;
esac
"""
# Called as: timeout --kill-after 10 SECONDS COMMAND ...
TIMEOUT = """#!/bin/sh
shift 2; echo "$*" >> "$LIMITS"; shift
case "$*" in *"$CUT_AT"*) [ -z "$CUT_AT" ] || exit 124 ;; esac
exec "$@"
"""
CLAIMS = ["bench_graph bf16", "bench_loss fp32", "bench_model bf16", "bench_graph fp32"]
STEPS = ["pytest", *CLAIMS, "bench_recipe"]


@pytest.fixture
def borrowed(tmp_path, monkeypatch):
    """``borrowed(ARGUMENT, ...)`` runs the script; its attribute ``steps()`` names what ran."""
    root = tmp_path / "copy"  # no Git repository
    (root / "tools").mkdir(parents=True)
    script = shutil.copy(SCRIPT, root / "tools")
    (tmp_path / "bin").mkdir()
    for name, text in (("python3", PYTHON), ("timeout", TIMEOUT)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    calls, limits = tmp_path / "calls.txt", tmp_path / "limits.txt"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for name, value in (("CALLS", calls), ("LIMITS", limits), ("FAIL_AT", ""), ("CUT_AT", "")):
        monkeypatch.setenv(name, str(value))

    def call(*arguments, commit="abc"):
        calls.unlink(missing_ok=True)
        limits.unlink(missing_ok=True)
        named = [] if commit is None else ["--commit", commit]
        command = ["bash", script, *arguments, *named]
        return subprocess.run(command, capture_output=True, text=True)

    def steps():
        """Benchmarks and tests that ran, in their order."""
        found = []
        for line in calls.read_text().splitlines():
            if name := re.match(r"-m (pytest) |benchmarks/(bench_\w+)\.py", line):
                found.append(name[1] or name[2])
                if "--rounds" in line:
                    found[-1] += " bf16" if "--dtype bf16" in line else " fp32"
        return found

    call.steps, call.root, call.limits = steps, root, limits
    return call


def test_a_step_that_fails_or_is_cut_off_does_not_end_the_others(borrowed, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "bench_model")
    monkeypatch.setenv("CUT_AT", "bench_recipe")
    result = borrowed("exactness", "claims", "recipes")
    assert result.returncode == 1
    assert borrowed.steps() == STEPS[:-1]
    failed, unfinished = (
        re.findall(f"(?m)^{w}: (.*)", result.stderr) for w in ("failed", "unfinished")
    )
    assert ["bench_model" in command for command in failed] == [True]
    assert ["bench_recipe" in command for command in unfinished] == [True]


def test_finished_steps_are_not_repeated(borrowed, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "bench_model")
    borrowed("exactness", "claims")
    monkeypatch.setenv("FAIL_AT", "")
    result = borrowed("exactness", "claims", "recipes")
    assert result.returncode == 0
    assert borrowed.steps() == ["bench_model bf16", "bench_recipe"]
    assert result.stdout.count("finished before: ") == 4
    # Another commit has not been measured, and a rehearsal counts for nothing.
    borrowed("exactness", commit="def")
    assert borrowed.steps() == ["pytest"]
    borrowed("--rehearse", "claims")
    assert borrowed.steps() == CLAIMS


def test_the_archive_has_what_was_measured_and_continues_elsewhere(borrowed, tmp_path, monkeypatch):
    pack = tmp_path / "results.tar.gz"
    monkeypatch.setenv("CUT_AT", "bench_model")
    result = borrowed("--pack", str(pack), "claims")
    assert result.returncode == 1
    with tarfile.open(pack) as tar:
        names = tar.getnames()
    assert {"./benchmarks/table.md", "./finished"} <= set(names)
    assert not [name for name in names if "scratch" in name]
    shutil.rmtree(borrowed.root / "output")  # a fresh machine
    borrowed("--pack", str(pack), "claims")
    assert borrowed.steps() == []  # bench_model is cut off again, before it runs
    assert "bench_model" in borrowed.limits.read_text()


def test_the_archive_keeps_what_a_step_has_done_so_far(borrowed, tmp_path, monkeypatch):
    # The machine ends while bench_graph runs: the archive must not wait for the end of the step.
    pack, script = tmp_path / "results.tar.gz", borrowed.root / "tools" / SCRIPT.name
    script.write_text(script.read_text().replace("while sleep 60", "while sleep 0.2"))
    seen = tmp_path / "seen"
    python = (tmp_path / "bin" / "python3").read_text()
    wait = f'sleep 1; tar --list --file {pack} > {seen}; echo later > "$2/later" ;;'
    (tmp_path / "bin" / "python3").write_text(python.replace(" ;;\nesac", f"; {wait}\nesac"))
    monkeypatch.setenv("CUT_AT", "bench_loss")
    borrowed("--pack", str(pack), "claims")
    assert "./benchmarks/table.md" in seen.read_text().split()
    with tarfile.open(pack) as tar:
        assert "./benchmarks/later" in tar.getnames()
    assert [p.name for p in tmp_path.glob("results*")] == [pack.name]


def test_a_broken_archive_is_not_overwritten(borrowed, tmp_path):
    pack = tmp_path / "results.tar.gz"
    pack.write_text("something else")
    result = borrowed("--pack", str(pack), "claims")
    assert result.returncode == 2
    assert "not an archive of an earlier session" in result.stderr
    assert pack.read_text() == "something else"


def test_a_machine_that_cannot_run_anything_is_given_back_at_once(borrowed, monkeypatch):
    monkeypatch.setenv("FAIL_AT", "check_machine")
    assert borrowed("exactness", "claims").returncode == 1
    assert borrowed.steps() == []


def test_every_piece_has_its_minutes_and_those_left_by_the_ones_before(borrowed):
    borrowed("exactness", "claims", "recipes")
    limits = [line.split()[0] for line in borrowed.limits.read_text().splitlines()]
    expected = [9, 2, 6, 6, 6, 6, 9]  # check_machine may take all
    for seconds, minutes in zip(limits, expected, strict=True):
        assert 0 <= 60 * minutes - int(seconds) <= 5
    borrowed("--minutes", "3", "claims")
    limits = [line.split()[0] for line in borrowed.limits.read_text().splitlines()]
    assert all(0 <= 180 - int(seconds) <= 5 for seconds in limits)


def test_a_copy_without_its_repository_needs_the_name_of_its_commit(borrowed):
    result = borrowed("exactness", commit=None)
    assert result.returncode == 2
    assert "--commit is missing" in result.stderr
    assert not borrowed.limits.exists()


def test_no_step_starts_without_time(borrowed):
    result = borrowed("--minutes", "0", "claims")
    assert result.returncode == 1
    assert "no time left: python3 benchmarks/check_machine.py" in result.stdout
    assert not borrowed.limits.exists()


def test_wheels_are_those_of_the_tested_versions_for_the_other_python(borrowed, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "one.whl").touch()
    result = borrowed("wheels", "3.12", str(wheels), "h5py", commit=None)
    assert result.returncode == 0, result.stderr
    build, download, detectron2, check = (tmp_path / "calls.txt").read_text().splitlines()
    for line in (build, download):
        assert "--no-deps --constraint requirements-tested.txt" in line
    for line in (download, check):
        assert "--only-binary=:all: --python-version 3.12 --platform manylinux" in line
    assert download.endswith("h5py")
    assert "install_detectron2.py" in detectron2
    assert "--dry-run --no-index" in check
    assert check.endswith("one.whl")


@pytest.mark.parametrize(
    "name", ["iopath", "fvcore", "yacs", "omegaconf", "hydra-core", "antlr4-python3-runtime",
             "termcolor", "pycocotools", "pydantic", "pydantic-core", "annotated-types",
             "typing-inspection"]
)  # fmt: skip
def test_every_wheel_has_a_tested_version(name):
    assert name in SCRIPT.read_text()
    assert f"\n{name}==" in (ROOT / "requirements-tested.txt").read_text()
