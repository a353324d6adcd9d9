"""A small part of the chaos run (``make chaos``): nothing may go wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def chaos(*words):
    command = [sys.executable, str(RUN), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_hostile_inputs():
    chaos(
        "--kind", "configs", "images", "checkpoints", "archives", "annotations", "--scale", "0.06"
    )


@pytest.mark.slow
def test_kills_and_full_disks():
    kinds = [f"{way} {job}" for way in ("kill", "disk") for job in ("training", "evaluation")]
    kinds += ["kill preparation", "kill packaging", "disk preparation", "disk packaging"]
    chaos("--kind", *kinds, "--scale", "0.1")
