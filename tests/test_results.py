"""Committed tables, and the numbers that pages quote, are what the records give."""

import re
import shlex
import statistics
from pathlib import Path

import pytest

from cdgcnet.comparison.records import load_record as load_compared_record
from cdgcnet.comparison.records import load_records as load_compared
from cdgcnet.comparison.report import make_lines
from cdgcnet.comparison.report import render as render_comparison
from cdgcnet.comparison.report import table as table_of
from cdgcnet.config.identity import changed_keys
from cdgcnet.experiments import render
from cdgcnet.experiments.jobs import split_overrides
from cdgcnet.experiments.record import load_records
from cdgcnet.experiments.rows import find_rows
from cdgcnet.experiments.table import HEADER, cells, matching
from cdgcnet.utils.digests import digest_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PROFILES = ROOT / "configs" / "experiments" / "profiles"
EXPERIMENTS = ROOT / "projects" / "CDGCNet" / "EXPERIMENTS.md"
CAMVID = RESULTS / "camvid_cpu" / "README.md"
TABLES = sorted(
    path
    for profile in PROFILES.glob("*.yaml")
    for path in RESULTS.glob(f"{profile.stem}/*.md")
    if path.name != "README.md"
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


# ---------------------------------------------------------------- the CamVid page
def told_lines() -> list[tuple[str, str, tuple[str, ...], dict[str, str]]]:
    """(split, row, changed pairs, told cells by column) of its tables.

    A table's first cell names a row and what was changed: `table3_02_sim`, `SOLVER.MAX_ITER 1350`.
    """
    found: list = []
    split, header = "", []
    for line in CAMVID.read_text("utf-8").splitlines():
        if line.startswith("## "):
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


def test_the_page_tells_many_rows():
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


# ---------------------------------------------------------------- trained features
CELL = r" (\d\d\.\d\d)? ?\|"


def told_rows(page: Path, columns: tuple[tuple[str, int], ...]) -> dict[tuple, str]:
    """Cells of the lines "| `control_03_aspp` | ASPP | 62.29 | 55.37 | |" of a page.

    A line of a changed row names the pair too: "| `default_02_graph`, `KEY VALUE` | …".
    """
    pattern = rf"^\| `(\w+)`(?:, `([\w.]+ \S+)`)? \| [^|]+ \|{CELL * len(columns)}$"
    found = {}
    for name, changed, *values in re.findall(pattern, page.read_text("utf-8"), re.MULTILINE):
        cells = zip(columns, values, strict=True)
        found |= {(name, changed, *column): value for column, value in cells if value}
    return found


def measured_rows(profile: str) -> dict[tuple, str]:
    """The same from the records of a profile, all scores of all seeds."""
    found = {}
    for (_, seed), record in load_records(RESULTS / profile / "val").items():
        pairs = dict(zip(record.overrides[::2], record.overrides[1::2], strict=True))
        way = "windows" if pairs.get("TEST.SLIDE.ENABLED") == "True" else "whole"
        changed = " ".join(f"{k} {v}" for k, v in pairs.items() if k.startswith("MODEL.CDGC."))
        for kind, scores in record.scores.items():
            name = way if kind == "sem_seg" else kind.removeprefix("sem_seg_")
            if kind == "sem_seg" or way == "whole":
                found[(record.row, changed, name, seed)] = f"{scores['mIoU']:.2f}"
    return found


@pytest.mark.parametrize(
    ("page", "profile", "columns"),
    [
        (
            RESULTS / "voc_animals_128_cpu" / "README.md",
            "voc_animals_128_cpu",
            (
                *(("whole", seed) for seed in (1, 2, 3)),
                *(("coarse", seed) for seed in (1, 2, 3)),
                ("oracle", 1),
            ),
        ),
        (
            EXPERIMENTS,
            "voc_animals",
            (*(("whole", seed) for seed in (1, 2, 3)), ("coarse", 1), ("oracle", 1)),
        ),
        (
            RESULTS / "voc_animals_cpu" / "README.md",
            "voc_animals_cpu",
            (("whole", 1), ("whole", 2), ("windows", 1), ("windows", 2), ("oracle", 1)),
        ),
    ],
    ids=["128", "GPU", "first"],
)
def test_trained_features_are_told_as_they_are(page, profile, columns):
    measured = measured_rows(profile)
    wanted = {key: value for key, value in measured.items() if key[2:] in columns}
    assert wanted and told_rows(page, columns) == wanted


T_TEST = {2: 12.706, 3: 4.303, 5: 2.776}  # Student's t for so many seeds, two-sided, 5 %


@pytest.mark.parametrize(
    ("row", "over", "seeds", "sentence", "verdict"),
    [
        ("control_03", "default_01", 3, "ASPP gains {} over the plain head", None),
        ("default_04", "default_01", 3, '{} over the plain head ("beats" by the t test', "beats"),
        ("default_04", "control_03", 3, "there is no difference: {}", None),
        ("default_05", "control_03", 3, "better in all three seeds, by {}, which is no", None),
        ("baseline_01", "control_03", 3, "A non-local block adds {}.", None),
        ("default_04", "default_02", 3, "OHEM takes {} from the default graph**, as much", None),
        ("default_02", "default_01", 3, 'still gains {} over the plain head ("beats")', "beats"),
        ("control_01", "control_03", 3, "On an ASPP alone OHEM adds {}.", None),
        ("control_03", "table3_07", 2, 'scores {} less in two seeds ("falls behind")', "beats"),
    ],
    ids=str,
)
def test_gains_with_trained_features_are_told(row, over, seeds, sentence, verdict):
    found = {
        (re.match(r"[a-z]+\d?_\d\d", record.row)[0], record.seed): record.scores["sem_seg"]["mIoU"]
        for record in load_records(RESULTS / "voc_animals" / "val").values()
    }
    gains = [found[row, seed] - found[over, seed] for seed in range(1, seeds + 1)]
    mean, error = statistics.mean(gains), statistics.stdev(gains) / seeds**0.5
    told = sentence.format(f"{mean:.2f} ± {error:.2f}".replace("-", "−"))
    assert told in " ".join(EXPERIMENTS.read_text("utf-8").split())
    assert (verdict == "beats") == (mean / error > T_TEST[seeds])


# ---------------------------------------------------------------- tables of `cdgcnet compare`
COMPARED = sorted(path for path in (RESULTS / "compare").iterdir() if path.is_dir())
PAPER = RESULTS / "compare" / "voc_animals_paper" / "README.md"
OHEM = RESULTS / "compare" / "voc_animals_ohem" / "README.md"
PAGES = [EXPERIMENTS, ROOT / "README.md", PAPER, OHEM, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("folder", COMPARED, ids=lambda path: path.name)
def test_a_page_has_the_table_that_the_records_of_a_comparison_give(folder):
    begin, end = f"<!-- compare {folder.name} -->", f"<!-- end of compare {folder.name} -->"
    [page] = [text for p in PAGES if begin in (text := p.read_text("utf-8"))]
    found = page.partition(begin)[2].partition(end)[0].strip()
    expected = render_comparison(load_compared(folder)).strip()
    assert found == expected, f"cdgcnet compare --render {folder} --into the page"


@pytest.mark.parametrize("folder", COMPARED, ids=lambda path: path.name)
def test_a_comparison_continues_from_its_records(folder):
    """The name of a record is the one under which the same row is looked for."""
    for path in folder.glob("*.json"):
        record = load_compared_record(path)
        digest = digest_of([changed_keys(record.settings), record.instrument])
        assert path.stem.endswith(f"-{digest}-seed{record.seed}"), path.name


def compared_cells(name: str = "voc_animals") -> dict[str, list[str]]:
    """Label -> cells of a comparison, by default the final one, which pages quote."""
    lines = make_lines(load_compared(RESULTS / "compare" / name))
    return {line.label: cells for line, cells in zip(lines, table_of(lines), strict=True)}


@pytest.mark.parametrize("page", [EXPERIMENTS, ROOT / "README.md"], ids=lambda path: path.name)
def test_scores_of_a_comparison_are_quoted_as_they_are(page):
    """Every "62.26 ± 0.32 (5)" outside of a generated table is a cell of the final comparison."""
    text = re.sub(r"<!-- compare .*?<!-- end of compare", "", page.read_text("utf-8"), flags=re.S)
    quoted = set(re.findall(r"\d\d\.\d\d(?: ± \d\.\d\d)? \(\d+\)", text))
    measured = {cells[1] for cells in compared_cells().values()}
    assert quoted and quoted <= measured, quoted - measured


def gain(
    head: str, over: str, context: str, seeds: range, name: str = "voc_animals"
) -> tuple[float, float]:
    """Mean and standard error of the paired differences of a comparison."""
    found = {
        (record.head, record.context, record.seed): record.metrics["sem_seg"]["mIoU"]
        for record in load_compared(RESULTS / "compare" / name)
    }
    gains = [found[head, context, seed] - found[over, context, seed] for seed in seeds]
    return statistics.mean(gains), statistics.stdev(gains) / len(gains) ** 0.5


def test_the_seeds_after_a_near_miss_are_told_by_themselves():
    """Five seeds fell short of a verdict; the five run after that are a test of their own."""
    mean, error = gain("graph", "plain", "aspp", range(6, 11))
    assert mean / error > T_TEST[5]
    told = f"{mean:.2f} ± {error:.2f}"
    assert all(told in page.read_text("utf-8") for page in (EXPERIMENTS, ROOT / "README.md"))


def test_gains_over_the_controls_are_told():
    told = " ".join(EXPERIMENTS.read_text("utf-8").split())
    mean, error = gain("graph", "graph:SCOPE=image", "none", range(1, 6))
    assert f"The class graph is {mean:.2f} ± {error:.2f} above it" in told
    mean, error = gain("graph", "graph:SCOPE=image", "aspp", range(1, 6))
    assert f"above it, and on an ASPP {mean:.2f} ± {error:.2f} (five seeds each)" in told
    mean, error = gain("graph", "pixelwise", "aspp", range(1, 6))
    assert (
        f"Over the pixelwise control, which adds nothing to ASPP, it is {mean:.2f} ± {error:.2f}"
        in told
    )


def test_what_ohem_costs_is_told():
    ohem = "graph:LOSS.OHEM_MIN_KEPT=0.25"
    mean, error = gain("graph", ohem, "none", range(1, 4), OHEM.parent.name)
    assert mean / error > T_TEST[3]
    told = " ".join(EXPERIMENTS.read_text("utf-8").split())
    assert f"OHEM takes {mean:.2f} ± {error:.2f} from the default graph" in told
    mean, error = gain(ohem, "graph", "aspp", range(1, 4), OHEM.parent.name)
    assert f"on an ASPP it adds {mean:.2f} ± {error:.2f} (three seeds each)" in told


def test_the_papers_ablations_are_told_as_they_are():
    """Lines "| `table1_02_plain_gcn` | `graph:SCOPE=image` | 78.2 | 61.42 ± 0.41 (2) |"."""
    told = re.findall(r"^\| `(table\w+)` \| `(.+?)` \| (\S+) \| (.+) \|$", PAPER.read_text(), re.M)
    assert {name[:6] for name, *_ in told} == {"table1", "table2", "table3", "table5"}
    measured = compared_cells(PAPER.parent.name)
    rows = {row.name: row for row in find_rows(PROFILES / "paper.yaml", "all")}
    for name, head, paper, here in told:
        assert float(paper) == rows[name].paper, name
        assert here == measured[head][1], name
