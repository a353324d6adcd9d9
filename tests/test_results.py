"""The committed tables are what their records give: none is stale, none was edited by hand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import run_experiments

from cdgcnet.experiments.record import load_records

RESULTS = Path(__file__).resolve().parent.parent / "results"
TABLES = sorted(RESULTS.glob("*/*.md"))


def way_of(table: Path) -> tuple[str, str, tuple[str, ...]]:
    """Profile, split and changed KEY VALUE pairs of a committed table."""
    changed = re.search(r"^Changed in all rows: `(.*)`\.$", table.read_text("utf-8"), re.MULTILINE)
    split = "dev" if "-dev" in table.stem else "val"
    return table.parent.name, split, tuple(shlex.split(changed[1])) if changed else ()


@pytest.mark.parametrize("way", sorted({way_of(t) for t in TABLES}), ids=str)
def test_committed_tables_are_what_their_records_give(way, tmp_path, monkeypatch):
    profile, split, changed = way
    monkeypatch.setattr(run_experiments, "write_picture", lambda *_: None)
    tables = [t for t in TABLES if way_of(t) == way]
    (tmp_path / profile).mkdir()
    for table in tables:  # render writes the tables that are there
        shutil.copy(table, tmp_path / profile)
    group = tables[0].stem.split("-")[0]
    words = [group, "--profile", profile, "--split", split, "--results", str(tmp_path)]
    _, args = run_experiments.parse([*words, "--opts", *changed])
    written = run_experiments.render(args, load_records(RESULTS / profile / split))
    assert {p.name for p in written} == {t.name for t in tables}
    for table in tables:
        found = (tmp_path / profile / table.name).read_text("utf-8")
        assert found == table.read_text("utf-8"), f"{table.name}: render it again"
        assert table.with_suffix(".png").is_file()
