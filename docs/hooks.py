"""MkDocs hook: adds the pages that live outside ``docs/`` to the site, with their links mapped.

GitHub shows README.md, MODEL_ZOO.md and the others where they are, so the site takes them from
there instead of holding copies.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "projects/CDGCNet/README.md": "method.md",
    "projects/CDGCNet/MODEL_ZOO.md": "model_zoo.md",
    "projects/CDGCNet/EXPERIMENTS.md": "experiments.md",
    "results/camvid_cpu/README.md": "camvid.md",
    "results/voc_animals_cpu/README.md": "trained_features.md",
    "results/compare/voc_animals_paper/README.md": "paper_tables.md",
    "projects/CDGCNet/assets/figures/README.md": "figures.md",
}
IMAGES = (".png", ".jpg", ".svg", ".gif")
# ](target), src="target" and href="target"
LINK = re.compile(r'(\]\(|(?:src|href|srcset)=")([^)"\s#]*)(#[^)"\s]*)?([)"])')


def site_path(source: Path, target: str) -> str | None:
    """Where the file that a page links to is on the site; None if it is not a part of it.

    Raises:
        FileNotFoundError: naming the page and the link that leads nowhere.
    """
    path = (source.parent / target).resolve()
    if not path.exists():
        raise FileNotFoundError(f"{source.relative_to(ROOT)}: the link {target} leads nowhere")
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES:
        return PAGES[name]
    if name.startswith("docs/") and path.suffix == ".md":
        return name.removeprefix("docs/")
    return name if path.suffix in IMAGES else None


def map_links(text: str, source: Path, page: str, images: set[str]) -> str:
    """The Markdown of ``source`` with links as the page at ``page`` needs them."""

    def replace(match: re.Match) -> str:
        start, target, anchor, end = match[1], match[2], match[3] or "", match[4]
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        place = site_path(source, target)
        if place is None:  # source code and the like, which only a checkout has
            return f"{start}#{end}" if start != "](" else f"]({'#'}{end}"
        if place.endswith(IMAGES):
            images.add(place)
        relative = os.path.relpath(place, Path(page).parent)
        return f"{start}{relative}{anchor}{end}"

    return LINK.sub(replace, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    images: set[str] = set()
    for name, page in PAGES.items():
        source = ROOT / name
        if source.is_file():
            text = map_links(source.read_text(encoding="utf-8"), source, page, images)
            files.append(File.generated(config, page, content=text))
    for image in sorted(images):
        files.append(File.generated(config, image, abs_src_path=str(ROOT / image)))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Pages of ``docs/`` link to the others by their places in the checkout."""
    source = page.file.abs_src_path
    if source is None or page.file.generated_by:
        return markdown
    return map_links(markdown, Path(source), page.file.src_uri, set())
