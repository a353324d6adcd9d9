"""The documentation site: its navigation is complete, its links are mapped, its examples run."""

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest
import yaml

import cdgc
import cdgcnet

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="the extra [docs] is not installed")
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("hooks")
    finally:
        sys.path.remove(str(DOCS))


def nav_pages() -> set[str]:
    """The pages that mkdocs.yml lists."""

    def pages(node) -> set[str]:
        if isinstance(node, str):
            return {node}
        values = node if isinstance(node, list) else node.values()
        return set().union(*map(pages, values))

    return pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])


def test_every_page_is_in_the_navigation(hooks):
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert nav_pages() == written | set(hooks.PAGES.values())
    assert all((ROOT / name).is_file() for name in hooks.PAGES)


def test_every_room_has_a_page():
    rooms = {
        module.name
        for module in pkgutil.iter_modules(cdgcnet.__path__)
        if module.ispkg and module.name not in ("utils", "experiments")
    }
    assert {f"api/{room}.md" for room in rooms} <= nav_pages()


def test_links_between_pages_are_mapped(hooks):
    readme = ROOT / "README.md"
    text = "[a](docs/data.md#x) [b](https://x.org) [c](Makefile) [d](#top)"
    mapped = hooks.map_links(text, readme, "index.md", set())
    assert mapped == "[a](data.md#x) [b](https://x.org) [c](#) [d](#top)"
    images = set()
    image = '<img src="projects/CDGCNet/assets/architecture.svg">'
    assert hooks.map_links(image, readme, "index.md", images) == image
    assert images == {"projects/CDGCNet/assets/architecture.svg"}
    back = hooks.map_links("[r](../README.md)", DOCS / "data.md", "data.md", set())
    assert back == "[r](index.md)"


def test_a_link_that_leads_nowhere_is_named(hooks):
    with pytest.raises(FileNotFoundError, match=r"README\.md: the link gone\.md leads nowhere"):
        hooks.map_links("[a](gone.md)", ROOT / "README.md", "index.md", set())


@pytest.mark.parametrize("package", [cdgc, cdgcnet], ids=lambda package: package.__name__)
def test_examples_in_docstrings(package):
    attempted = 0
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.name.endswith("__main__"):
            continue
        result = doctest.testmod(importlib.import_module(info.name))
        assert result.failed == 0, info.name
        attempted += result.attempted
    result = doctest.testmod(package)
    assert result.failed == 0
    assert attempted + result.attempted > 0
