"""The command line as a whole: help, usage errors, exit codes, and no heavy import before work."""

import argparse
import logging
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cdgcnet
from cdgcnet.cli import train
from cdgcnet.cli.commands import COMMANDS, load_command
from cdgcnet.cli.errors import deliver_lost_interrupts, run_guarded
from cdgcnet.cli.launch import launch_processes

ROOT = Path(__file__).resolve().parents[3]
TOOLS = [ROOT / "train_net.py", *sorted((ROOT / "tools").glob("*.py"))]
HEAVY = ("torch", "numpy", "detectron2", "cv2", "PIL", "matplotlib")
# Runs a script, then prints which heavy packages it imported and its exit code.
PROBE = f"""
import runpy, sys
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
try:
    start = runpy.run_path if script.endswith(".py") else runpy.run_module
    start(script, run_name="__main__")
except SystemExit as stop:
    print("imported", [name for name in {HEAVY} if name in sys.modules], "code", stop.code)
"""


def probe(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, words)], capture_output=True, text=True, timeout=60
    )


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command(name, command, capsys):
    assert command(name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: cdgcnet {name} ")
    assert load_command(name).__doc__.splitlines()[0] in out
    assert "%(prog)s" not in out


def test_help_lists_every_command(command, capsys):
    assert command("--help") == 0
    out = capsys.readouterr().out
    assert all(f"\n    {name}" in out for name in COMMANDS)


def test_version(command, capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out == f"cdgcnet {cdgcnet.__version__}\n"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_help_of_every_tool_imports_nothing_heavy(tool):
    done = probe(tool, "--help")
    assert done.stdout.startswith(f"usage: {tool.name} ")
    assert done.stdout.endswith("imported [] code 0\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--help"], 0, ""),
        ([], 2, "the following arguments are required: COMMAND"),
        (["trian"], 2, "invalid choice: 'trian'"),
        (["train", "--config-file", "no.yaml"], 1, "--config-file no.yaml: there is no such file"),
        (["predict", "--config-file", "c.yaml"], 2, "required: --input, --output"),
        (["visualize", "--config-file", "c.yaml", "--output", "g.gif"], 2, "ends with .png"),
        (["predict", "--input", "a", "--output", "b", "SEED", "1"], 2, "SEED 1; overrides of"),
        (["prepare", "camvid", "--src", "a", "--root", "b", "c"], 2, "unrecognized arguments: c\n"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_heavy_is_imported(words, code, message):
    done = probe("cdgcnet", *words)
    assert done.stdout.endswith(f"imported [] code {code}\n")
    assert message in done.stderr and "Traceback" not in done.stderr


def test_tools_run_commands_that_exist():
    texts = [tool.read_text(encoding="utf-8") for tool in TOOLS]
    called = {name for text in texts for name in re.findall(r'run_tool\("([a-z0-9-]+)"\)', text)}
    assert len(called) > 8 and called <= set(COMMANDS)


# ---------------------------------------------------------------- errors


def failing(error: BaseException):
    def fail(args):
        raise error

    return fail


ARGS = argparse.Namespace(prog="cdgcnet test")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("SEED is x"), 1, "cdgcnet test: error: SEED is x\n"),
        (FileNotFoundError("no a.png"), 1, "cdgcnet test: error: no a.png\n"),
        (MemoryError(), 1, "cdgcnet test: error: MemoryError\n"),
        (KeyboardInterrupt(), 130, "cdgcnet test: interrupted\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_the_user_are_one_line(error, code, message, capsys):
    assert run_guarded(failing(error), ARGS) == code
    assert capsys.readouterr().err == message


# Runs a script that gets Ctrl-C when it imports a module of the given name.
INTERRUPTED = """
import os, runpy, signal, sys
_, script, module, *words = sys.argv
class Interrupt:
    def find_spec(self, name, *args):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
sys.meta_path.insert(0, Interrupt())
sys.argv[:] = [script, *words]
start = runpy.run_path if script.endswith(".py") else runpy.run_module
start(script, run_name="__main__")
"""


@pytest.mark.parametrize("script", ["cdgcnet", ROOT / "train_net.py"])
@pytest.mark.parametrize("module", ["argparse", "cdgcnet.cli.train", "torch._C", "detectron2"])
def test_an_interrupt_during_imports(script, module):
    words = [] if script != "cdgcnet" else ["train"]
    config = ROOT / "configs/Streets-SemanticSegmentation/plain_r18_cpu.yaml"
    words = [script, module, *words, "--config-file", config, "MODEL.DEVICE", "no device"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 130
    assert done.stderr in (
        ["train_net.py: interrupted\n"]
        if script != "cdgcnet"
        else ["cdgcnet: interrupted\n", "cdgcnet train: interrupted\n"]
    )


def test_an_interrupt_in_a_callback_is_not_lost(capsys, monkeypatch):
    class Interrupted:
        def __del__(self):
            raise KeyboardInterrupt  # as Ctrl-C does there; Python only prints it

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    deliver_lost_interrupts()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        Interrupted()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_other_errors_in_callbacks_are_printed(monkeypatch):
    class Faulty:
        def __del__(self):
            raise RuntimeError("a fault")

    printed: list = []
    monkeypatch.setattr(sys, "unraisablehook", lambda x: printed.append(str(x.exc_value)))
    deliver_lost_interrupts()
    Faulty()
    assert printed == ["a fault"]


def test_names_of_files_cannot_control_the_terminal(capsys):
    def fail(args):
        raise ValueError("a\x1b[2J\rb.png: line 1\nline 2")

    assert run_guarded(fail, argparse.Namespace(prog="cdgcnet x")) == 1
    assert capsys.readouterr().err == "cdgcnet x: error: a�[2J�b.png: line 1\nline 2\n"


def test_the_traceback_goes_to_the_log_at_debug(caplog):
    with caplog.at_level(logging.DEBUG, logger="cdgcnet"):
        run_guarded(failing(ValueError("SEED is x")), ARGS)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG and record.exc_info[0] is ValueError


def test_a_missing_detectron2_is_explained(capsys):
    error = ModuleNotFoundError("No module named 'detectron2'", name="detectron2.data")
    assert run_guarded(failing(error), ARGS) == 1
    assert "python -m cdgcnet install-detectron2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [RuntimeError("a fault"), ModuleNotFoundError("No module named 'x'", name="x")]
)
def test_faults_of_the_program_keep_their_traceback(error):
    with pytest.raises(type(error)):
        run_guarded(failing(error), ARGS)


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_of_a_command(returned, code):
    assert run_guarded(lambda args: returned, ARGS) == code


# ---------------------------------------------------------------- processes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-gpus", "0"], "argument --num-gpus: 0: expected 1 or more"),
        (["--num-gpus", "x"], "argument --num-gpus: invalid integer value: 'x'"),
        (["--num-machines", "2"], "--dist-url tcp://HOST:PORT"),
        (["--machine-rank", "1"], "--machine-rank 1: expected less than --num-machines"),
        (["SEED"], "overrides come in pairs KEY VALUE; found SEED"),
    ],
)
def test_usage_errors_of_train(options, message, command, run_yaml, capsys):
    assert command("train", "--config-file", run_yaml, *options) == 2
    assert message in capsys.readouterr().err


def test_more_gpus_than_there_are(command, run_yaml, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert command("train", "--config-file", run_yaml, "--num-gpus", 2) == 1
    assert "--num-gpus 2, but 1 are available" in capsys.readouterr().err


def test_a_single_process_runs_here():
    parser = argparse.ArgumentParser()
    train.add_run_arguments(parser)
    args = parser.parse_args(["--config-file", "c.yaml"])
    seen = []
    assert launch_processes(seen.append, args) == 0
    assert seen == [args]
