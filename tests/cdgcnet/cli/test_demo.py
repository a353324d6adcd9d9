"""cdgcnet demo --quick end to end: what a newcomer's first command does, in small."""

import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DEMO = Path(__file__).resolve().parents[3] / "tools" / "demo.py"


def demo(*argv, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess:
    # In its own process: it adds log handlers, registers datasets and seeds everything.
    return subprocess.run(
        [sys.executable, str(DEMO), *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=1500,  # minutes where nothing else runs; never for ever
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def demo_on_a_terminal(*argv) -> subprocess.CompletedProcess:
    """The same with a terminal as stderr."""
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    shown = []

    def read() -> None:
        with suppress(OSError):  # at the end
            while piece := os.read(ours, 4096):
                shown.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    done = demo(*argv, stderr=theirs)
    os.close(theirs)
    reader.join()
    os.close(ours)
    done.stderr = b"".join(shown).decode()
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.mark.slow
def test_quick_demo_twice(tmp_path):
    arguments = ("--quick", "--output", tmp_path / "demo", "--data", tmp_path / "data")
    first = demo_on_a_terminal(*arguments)
    assert first.returncode == 0, first.stderr[-3000:]

    # The table: one row per class seen, then the mean; four columns.
    lines = first.stdout.splitlines()
    [header] = [line for line in lines if "no graph" in line]
    assert header.split() == ["no", "graph", "coarse", "refined", "refined+TTA"]
    [mean] = [line for line in lines if line.startswith("mean (mIoU)")]
    assert len(mean.split()) == 2 + 4

    # Every path that is printed exists.
    for word in ("scenes", "pictures", "changes", "results", "weights", "logs"):
        [line] = [line for line in lines if line.startswith(f"{word} ")]
        assert Path(line.split(maxsplit=1)[1]).exists(), line

    out = tmp_path / "demo"
    results = json.loads((out / "results.json").read_text())
    assert set(results) == {
        "no_graph",
        "sem_seg",
        "sem_seg_coarse",
        "sem_seg_oracle",
        "graph",
        "sem_seg_TTA",
    }
    assert [f"{results['sem_seg']['mIoU']:.2f}"] == mean.split()[4:5]
    for name in ("predictions.png", "changes.png"):
        sheet = np.asarray(Image.open(out / name).convert("RGB"))
        assert min(sheet.shape[:2]) > 100 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50

    # Progress is shown on every long step.
    for step in ("drawing", "training", "evaluating"):
        assert step in first.stderr
    assert "Traceback" not in first.stderr

    # Again: nothing is drawn again, nothing overwritten, the same numbers.
    before = contents(out)
    drawn = contents(tmp_path / "data")
    second = demo(*arguments)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "\r" not in second.stderr  # not on a terminal: whole lines
    assert contents(out) == before and contents(tmp_path / "data") == drawn
    again = json.loads((tmp_path / "demo-2" / "results.json").read_text())
    assert again == results


def test_output_of_an_earlier_demo_gets_a_number(tmp_path):
    from cdgcnet.cli import demo as module

    folder = tmp_path / "demo"
    assert module.free_folder(folder) == folder
    folder.mkdir()
    assert module.free_folder(folder) == folder  # an empty one is free
    (folder / "x").write_text("")
    assert module.free_folder(folder) == tmp_path / "demo-2"
    (tmp_path / "demo-2").mkdir()
    (tmp_path / "demo-2" / "x").write_text("")
    assert module.free_folder(folder) == tmp_path / "demo-3"


def test_output_that_is_a_file_is_an_error_not_a_loss(tmp_path):
    (tmp_path / "demo").write_text("mine")
    done = demo("--quick", "--output", tmp_path / "demo", "--data", tmp_path / "data")
    assert done.returncode != 0
    assert str(tmp_path / "demo") in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "demo").read_text() == "mine"


@pytest.mark.slow
def test_full_demo_reaches_its_score(tmp_path):
    # What README promises of `make demo`: 0.60 or more, over at least ten classes.
    run = demo("--output", tmp_path / "demo")
    assert run.returncode == 0, run.stderr[-3000:]
    scores = json.loads((tmp_path / "demo" / "results.json").read_text())["sem_seg"]
    counted = [k for k, v in scores.items() if k.startswith("ACC-") and v is not None]
    assert len(counted) >= 10
    assert scores["mIoU"] >= 60.0
