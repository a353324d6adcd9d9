"""The commands and links of MODEL_ZOO.md and docs/getting_started.md."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from cdgcnet.cli import experiments
from cdgcnet.cli.figures import FIGURES
from cdgcnet.cli.main import main
from cdgcnet.experiments.jobs import make_jobs
from cdgcnet.experiments.rows import GROUPS, find_rows

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "projects" / "CDGCNet" / "MODEL_ZOO.md"
START = ROOT / "docs" / "getting_started.md"
PAGES = (ZOO, START)


def commands(page: Path, tool: str) -> list[list[str]]:
    """Arguments of every command of a tool on a page."""
    text = page.read_text(encoding="utf-8").replace(" W`", " --opts MODEL.WEIGHTS resnet101.pth`")
    text = text.replace("\\\n", "")  # continued lines
    found = re.findall(rf"python tools/{tool}\.py ([^`\n#]+)", text)
    return [shlex.split(words) for words in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).exists(), link


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
    assert f"{counted} trainings make all tables" in ZOO.read_text(encoding="utf-8")


def test_expected_numbers_in_the_zoo_are_the_papers():
    text = ZOO.read_text(encoding="utf-8")
    for group in ("table1", "table2", "table4", "table6"):
        rows = find_rows(experiments.PROFILES / "paper.yaml", group)
        expected = ", ".join(f"{row.paper:.1f}" for row in rows)
        assert re.search(rf"\| Table {group[-1]} \|.*\| {re.escape(expected)} \|", text), group


def test_commands_of_the_start_are_understood(capsys):
    found = commands(START, "make_figures")
    assert {words[0] for words in found} == set(FIGURES)
    for words in found:  # understood: the first complaint is that the config is not there
        assert main(["figures", *words]) == 1
        assert "output/my/config.yaml" in capsys.readouterr().err


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
