"""Shared by all tests: import paths, Hypothesis profiles, seeded generators."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

TESTS = Path(__file__).resolve().parent
# The folder tests/cdgc would pass for a namespace package `cdgc` when the project is found by an
# import hook only (editable installs), so the project's folder is put on the path itself.
for folder in (TESTS, TESTS.parent / "projects" / "CDGCNet"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

# No deadline: the first call of a torch kernel may take a second. No database: examples are
# seeds, and a failure prints them.
settings.register_profile("dev", deadline=None, database=None)
settings.register_profile("ci", deadline=None, database=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
