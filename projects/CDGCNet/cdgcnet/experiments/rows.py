"""Rows of the paper's tables: a small config file each, merged on top of a profile.

``configs/experiments/profiles/PROFILE.yaml`` holds the recipe (dataset, schedule, sizes) and
``configs/experiments/rows/ROW.yaml`` what the row changes in it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from cdgcnet.config.defaults import load_cfg
from cdgcnet.config.identity import complete_config, identifies, row_hash

GROUPS = (
    "table1",
    "table2",
    "table3",
    "table4",
    "table5",
    "table6",
    "control",
    "baseline",
    "ablation",
    "default",
)
_HEADER = re.compile(r"# (?P<table>[^,]+), (?P<label>.+); paper: (?P<paper>-|\d+(\.\d+)?)")


@dataclass(frozen=True)
class Row:
    """One row of a table, in one profile.

    Attributes:
        path: its config file.
        profile: config file of the profile; None for a row with a recipe of its own (Table 6).
        group: one of :data:`GROUPS`.
        label: as named in the first line of the file.
        paper: the paper's mIoU in percent; None where the paper has no such row.
    """

    path: Path
    profile: Path | None
    group: str
    label: str
    paper: float | None

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def config_files(self) -> tuple[Path, ...]:
        """The config files to merge, in this order."""
        return (self.path,) if self.profile is None else (self.profile, self.path)


def read_row(path: Path, profile: Path) -> Row:
    """Read a row from the first line of its file, ``# Table 3, ds 0.4; paper: 80.3``.

    A row that starts from a ``_BASE_`` has its own recipe and ignores the profile.

    Raises:
        ValueError: if the first line or the file name does not have the expected form.
    """
    lines = path.read_text(encoding="utf-8").splitlines() or [""]
    found = _HEADER.fullmatch(lines[0].strip())
    group = path.stem.split("_")[0]
    if not found or group not in GROUPS:
        raise ValueError(
            f"{path}: expected a name like table3_02_sim.yaml and a first line like "
            f"'# Table 3, sim; paper: 80.0' (or '-'), found {lines[0]!r}"
        )
    paper = None if found["paper"] == "-" else float(found["paper"])
    own_recipe = any(line.startswith("_BASE_:") for line in lines)
    return Row(path, None if own_recipe else profile, group, found["label"], paper)


def changes_measurement(key: str) -> bool:
    """Whether a config key influences what a row measures."""
    return identifies(key, "row")


def find_rows(profile: Path, group: str, names: Sequence[str] = ()) -> list[Row]:
    """The rows of one table, or of all.

    Args:
        profile: ``configs/experiments/profiles/PROFILE.yaml``. Rows with their own recipe
            (Table 6) belong to the profile ``paper`` only.
        group: one of :data:`GROUPS`, or "all".
        names: keep only rows whose name contains one of these.

    Raises:
        ValueError: if no row belongs to the group, or none matches a name.
    """
    files = sorted((profile.parent.parent / "rows").glob("*.yaml"))
    found = [read_row(path, profile) for path in files]
    found = [row for row in found if row.profile is not None or profile.stem == "paper"]
    rows = [row for row in found if group in ("all", row.group)]
    if not rows:
        groups = ", ".join(g for g in GROUPS if any(row.group == g for row in found)) or "none"
        raise ValueError(f"profile {profile.stem} has no rows of {group}; it has {groups}")
    for name in names:
        if not any(name in row.name for row in rows):
            known = ", ".join(row.name for row in rows)
            raise ValueError(f"--rows {name}: no such row in {group}; the rows are {known}")
    return [row for row in rows if not names or any(name in row.name for name in names)]


def row_config(row: Row, overrides: Sequence[str] = ()) -> CfgNode:
    """The resolved config of a row. On a machine without CUDA its device becomes the CPU.

    Raises:
        ValueError: naming the file and what is wrong in it or in the overrides.
    """
    return _resolved(row.config_files, tuple(overrides)).clone()


@cache
def row_text(row: Row, overrides: tuple[str, ...] = ()) -> str:
    """:func:`row_config` as YAML text for :func:`config_hash`, cached because it is slow."""
    return _resolved(row.config_files, overrides).dump()


@cache
def _resolved(files: tuple[Path, ...], overrides: tuple[str, ...]) -> CfgNode:
    here = [] if torch.cuda.is_available() or len(overrides) % 2 else ["MODEL.DEVICE", "cpu"]
    try:
        return load_cfg([str(path) for path in files], [*overrides, *here])
    except ValueError as error:
        raise ValueError(f"{files[-1].name}: {error}") from error


@cache
def flat_text(text: str) -> dict[str, Any]:
    """:func:`complete_config` of a YAML text, parsed once. Do not modify the result."""
    return complete_config(text)


def config_hash(config: CfgNode | str, *, training: bool = False, tta: bool | None = None) -> str:
    """:func:`row_hash` of a config, or of the YAML text of a run's config.yaml."""
    flat = flat_text(config if isinstance(config, str) else config.dump())
    return row_hash(flat, training=training, tta=tta)
