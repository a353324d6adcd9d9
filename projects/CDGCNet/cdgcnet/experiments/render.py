"""Renders tables and pictures from records, without running anything."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cdgcnet.experiments.jobs import TTA, split_overrides
from cdgcnet.experiments.plot import write_picture
from cdgcnet.experiments.record import Record
from cdgcnet.experiments.rows import (
    GROUPS,
    Row,
    changes_measurement,
    config_hash,
    find_rows,
    row_config,
    row_text,
)
from cdgcnet.experiments.table import Line, write_markdown

ASPP = "control_03_aspp"  # the row whose time per iteration is 1
_TITLES = {
    "control": "Controls",
    "baseline": "Baselines",
    "ablation": "Ablations",
    "default": "Default graph",
}


def make_line(row: Row, pairs: Sequence[str], records: Mapping[tuple[str, int], Record]) -> Line:
    """A row with KEY VALUE overrides, and its records of all seeds."""
    cfg = row_config(row, pairs)
    aug = cfg.TEST.AUG
    text = row_text(row, tuple(pairs))
    own, with_tta = config_hash(text), config_hash(text, tta=True)

    def of(wanted: str) -> dict:
        return {seed: r for (h, seed), r in records.items() if h == wanted}

    evaluation = (tuple(aug.SCALES), aug.FLIP) if aug.ENABLED else ()
    return Line(row, own, of(own), of(with_tta), evaluation)


def make_controls(
    rows: Sequence[Row],
    lines: Sequence[Line],
    pairs: Sequence[str],
    records: Mapping[tuple[str, int], Record],
) -> list[Line]:
    """The control rows, once for every evaluation (scales, flip) that occurs in the lines."""
    controls = []
    for evaluation in dict.fromkeys([(), *(line.evaluation for line in lines)]):
        way: tuple[str, ...] = ()
        if evaluation:
            scales, flip = str(list(evaluation[0])), str(evaluation[1])
            way = (*TTA, "TEST.AUG.SCALES", scales, "TEST.AUG.FLIP", flip)
        controls += [make_line(row, (*pairs, *way), records) for row in rows]
    return controls


def name_overrides(changed: Sequence[str]) -> str:
    """KEY VALUE overrides as part of a file name, made unique by a hash: MAX_ITER-1350-fc2f75."""
    words = [key.split(".")[-1] if i % 2 == 0 else key for i, key in enumerate(changed)]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(words)).strip("-")[:40]
    return f"{readable}-{hashlib.blake2b(repr(list(changed)).encode(), digest_size=3).hexdigest()}"


def render(
    profile: Path,
    results: Path,
    records: Mapping[tuple[str, int], Record],
    groups: Collection[str],
    split: str,
    overrides: Sequence[str],
) -> list[Path]:
    """Write the Markdown table and the picture of some groups.

    Tables that exist already are written again, because groups share runs.

    Args:
        profile: config file of the profile.
        results: folder that holds a folder per profile.
        records: of this profile and split.
        groups: which tables to write.
        split: "val" or "dev".
        overrides: KEY VALUE pairs that all rows were changed by.

    Returns:
        The Markdown files.
    """
    rows = find_rows(profile, "all")
    base = results / profile.stem
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    changed = [x for key, value in pairs if changes_measurement(key) for x in (key, value)]
    suffix = "" if split == "val" else f"-{split}"
    if changed:
        suffix += f"-{name_overrides(changed)}"
    existing = {group for group in GROUPS if (base / f"{group}{suffix}.md").is_file()}
    written = []
    for group in sorted({*groups} | existing, key=GROUPS.index):
        chosen = [row for row in rows if row.group == group]
        opts = split_overrides(chosen[0], split, overrides)
        lines = [make_line(row, opts, records) for row in chosen]
        controls = make_controls(find_rows(profile, "control"), lines, opts, records)
        aspp = next(c for c in controls if c.row.name == ASPP)
        title = f"{_TITLES.get(group, f'Table {group[-1]}')}, profile {profile.stem}"
        title += "" if split == "val" else f", split {split}"
        name = f"{group}{suffix}"
        write_picture(base / f"{name}.png", title, lines, controls)
        write_markdown(base / f"{name}.md", title, lines, controls, aspp, changed, f"{name}.png")
        written.append(base / f"{name}.md")
    return written
