"""Commands, links and lists of the pages are those of the code."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from cdgcnet.cli import experiments
from cdgcnet.cli.commands import COMMANDS, load_command
from cdgcnet.experiments.jobs import make_jobs
from cdgcnet.experiments.rows import GROUPS, find_rows

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "projects" / "CDGCNet" / "MODEL_ZOO.md"
START = ROOT / "docs" / "getting_started.md"
DOCUMENTS = [
    page
    for folder in (ROOT, ROOT / "docs", ROOT / "projects" / "CDGCNet")
    for page in sorted(folder.glob("*.md"))
]


def commands(page: Path, tool: str) -> list[list[str]]:
    """Arguments of every command of a tool on a page."""
    text = page.read_text(encoding="utf-8").replace(" W`", " --opts MODEL.WEIGHTS resnet101.pth`")
    text = text.replace("\\\n", "")  # continued lines
    found = re.findall(rf"python tools/{tool}\.py ([^`\n#]+)", text)
    return [shlex.split(words) for words in found]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in link and not link.startswith("mailto:"):
            assert (page.parent / link).exists(), link


def test_the_zoo_lists_every_profile():
    listed = re.findall(r"(?m)^\| `(\w+)` \|", ZOO.read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(p.stem for p in experiments.PROFILES.glob("*.yaml"))


def test_installation_lists_every_extra():
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = project.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    defined = re.findall(r"(?m)^(\w+) = \[", extras)
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", page)) == sorted(defined)


def test_commands_of_the_zoo_are_understood():
    found = commands(ZOO, "run_experiments")
    assert {words[0] for words in found} == {*GROUPS, "all"}
    for words in found:
        parser = argparse.ArgumentParser()
        experiments.add_arguments(parser)
        args = parser.parse_args(words)
        experiments.check_arguments(args)
        profile = experiments.PROFILES / f"{args.profile}.yaml"
        assert find_rows(profile, args.table, args.rows)


def test_number_of_trainings_in_the_zoo():
    rows = find_rows(experiments.PROFILES / "paper.yaml", "all")
    jobs = make_jobs(rows, 1, "val", [])
    counted = len({job.training for job in jobs})
    assert f"{counted} training runs make all tables" in ZOO.read_text(encoding="utf-8")


def test_expected_numbers_in_the_zoo_are_the_papers():
    text = ZOO.read_text(encoding="utf-8")
    for group in ("table1", "table2", "table4", "table6"):
        rows = find_rows(experiments.PROFILES / "paper.yaml", group)
        expected = ", ".join(f"{row.paper:.1f}" for row in rows)
        assert re.search(rf"\| Table {group[-1]} \|.*\| {re.escape(expected)} \|", text), group


def commands_in(page: Path) -> list[list[str]]:
    """Every whole ``cdgcnet`` command on a page; those with placeholders are left out."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")  # continued lines
    lines = re.findall(r"(?m)^(?: {4}|    \$ )?cdgcnet ([a-z].*)$", text)
    found = [shlex.split(line, comments=True) for line in lines if not re.search(r"[…{\[|]", line)]
    # A word in capitals, such as NAME, stands for a choice.
    return [words for words in found if words and not any(w.isupper() for w in words[1:2])]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: p.name)
def test_commands_are_understood(page):
    for words in commands_in(page):
        assert words[0] in COMMANDS, words
        parser = argparse.ArgumentParser(exit_on_error=False)
        load_command(words[0]).add_arguments(parser)
        parser.parse_args(words[1:])


def test_commands_are_found():
    assert sum(len(commands_in(page)) for page in DOCUMENTS) > 10


def test_keys_of_the_start_exist():
    from detectron2.config import get_cfg

    from cdgcnet.config.defaults import add_cdgcnet_config

    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    keys = re.findall(r"\b(?:MODEL|INPUT|SOLVER|TEST)\.[A-Z0-9_.]+", START.read_text("utf-8"))
    assert keys
    for key in keys:
        node = cfg
        for part in key.rstrip(".").split("."):
            assert part in node, key
            node = node[part]
