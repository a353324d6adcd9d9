"""Committed tables, and the numbers in EXPERIMENTS.md, are what the records give."""

import re
import shlex
from pathlib import Path

import pytest

from cdgcnet.experiments import render
from cdgcnet.experiments.jobs import split_overrides
from cdgcnet.experiments.record import load_records
from cdgcnet.experiments.rows import find_rows
from cdgcnet.experiments.table import HEADER, cells, matching

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PROFILES = ROOT / "configs" / "experiments" / "profiles"
EXPERIMENTS = ROOT / "projects" / "CDGCNet" / "EXPERIMENTS.md"
TABLES = sorted(
    path for profile in PROFILES.glob("*.yaml") for path in RESULTS.glob(f"{profile.stem}/*.md")
)


def way_of(table: Path) -> tuple[str, str, tuple[str, ...]]:
    """Profile, split and changed KEY VALUE pairs of a committed table."""
    changed = re.search(r"^Changed in all rows: `(.*)`\.$", table.read_text("utf-8"), re.MULTILINE)
    split = "dev" if "-dev" in table.stem else "val"
    return table.parent.name, split, tuple(shlex.split(changed[1])) if changed else ()


@pytest.mark.parametrize("way", sorted({way_of(t) for t in TABLES}), ids=str)
def test_committed_tables_are_what_their_records_give(way, tmp_path, monkeypatch):
    profile, split, changed = way
    monkeypatch.setattr(render, "write_picture", lambda *_: None)
    tables = [t for t in TABLES if way_of(t) == way]
    groups = {table.stem.split("-")[0] for table in tables}
    records = load_records(RESULTS / profile / split)
    written = render.render(PROFILES / f"{profile}.yaml", tmp_path, records, groups, split, changed)
    assert {p.name for p in written} == {t.name for t in tables}
    for table in tables:
        found = (tmp_path / profile / table.name).read_text("utf-8")
        assert found == table.read_text("utf-8"), f"{table.name}: render it again"
        assert table.with_suffix(".png").is_file()


# ---------------------------------------------------------------- EXPERIMENTS.md
def told_lines() -> list[tuple[str, str, tuple[str, ...], dict[str, str]]]:
    """(split, row, changed pairs, told cells by column) of the tables in EXPERIMENTS.md.

    A table's first cell names a row and what was changed: `table3_02_sim`, `SOLVER.MAX_ITER 1350`.
    """
    found: list = []
    split, header = "", []
    for line in EXPERIMENTS.read_text("utf-8").splitlines():
        if line.startswith("### "):
            split = {"val": "val", "held-out": "dev"}.get(line.split()[1].lower(), split)
        cells = [c.strip() for c in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
        elif names := re.findall(r"`([^`]+)`", cells[0]):
            opts = tuple(word for pair in names[1:] for word in shlex.split(pair))
            told = dict(zip(header, cells, strict=True))
            found.append((split, names[0], opts, {h: told[h] for h in HEADER[1:] if h in told}))
    return found


def test_experiments_tells_many_rows():
    assert len(told_lines()) > 15


@pytest.mark.parametrize("told", told_lines(), ids=lambda t: " ".join((t[0], t[1], *t[2])))
def test_numbers_told_are_those_of_the_records(told):
    split, name, opts, said = told
    profile = PROFILES / "camvid_cpu.yaml"
    records = load_records(RESULTS / "camvid_cpu" / split)
    [row] = find_rows(profile, "all", [name])
    pairs = split_overrides(row, split, opts)
    line = render.make_line(row, pairs, records)
    controls = render.make_controls(find_rows(profile, "control"), [line], pairs, records)
    measured = dict(zip(HEADER, cells(line, matching(controls, line), None), strict=True))
    assert said and said == {column: measured[column] for column in said}
