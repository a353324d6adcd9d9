"""Rows of the paper's tables: one config file each, ``configs/experiments/PROFILE/*.yaml``."""

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

GROUPS = ("table1", "table2", "table3", "table4", "table5", "table6", "control", "peer", "ext")
_HEADER = re.compile(r"# (?P<table>[^,]+), (?P<label>.+); paper: (?P<paper>-|\d+(\.\d+)?)")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        path: its config file.
        group: "table1" ... "ext".
        label: as the file's first line names it.
        paper: the paper's mIoU in percent; None where it has none.
    """

    path: Path
    group: str
    label: str
    paper: float | None

    @property
    def name(self) -> str:
        return self.path.stem


def read_row(path: Path) -> Row:
    """A row from the first line of its file, ``# Table 3, ds 0.4; paper: 80.3``.

    Raises:
        ValueError: if the line or the file's name is of another form.
    """
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    found = _HEADER.fullmatch(first)
    group = path.stem.split("_")[0]
    if not found or group not in GROUPS:
        raise ValueError(
            f"{path}: expected a name like table3_02_sim.yaml and a first line like "
            f"'# Table 3, sim; paper: 80.0' (or '-'), found {first!r}"
        )
    paper = None if found["paper"] == "-" else float(found["paper"])
    return Row(path, group, found["label"], paper)


def changes_measurement(key: str) -> bool:
    """Whether a config key has a part in what a row measures."""
    return identifies(key, "row")


def find_rows(folder: Path, group: str, names: Sequence[str] = ()) -> list[Row]:
    """The rows of a table, or of all.

    Args:
        folder: of one profile.
        group: one of :data:`GROUPS`, or "all".
        names: only these, by file name without ".yaml" or a part of it.

    Raises:
        ValueError: for a folder without such rows or a name that no row has.
    """
    there = [read_row(p) for p in sorted(folder.glob("*.yaml")) if not p.stem.startswith("Base")]
    rows = [row for row in there if group in ("all", row.group)]
    if not rows:
        groups = ", ".join(g for g in GROUPS if any(row.group == g for row in there)) or "none"
        raise ValueError(f"{folder}: no rows of {group} there; this profile has {groups}")
    for name in names:
        if not any(name in row.name for row in rows):
            names_there = ", ".join(row.name for row in rows)
            raise ValueError(f"--rows {name}: no such row in {group}; there are {names_there}")
    return [row for row in rows if not names or any(name in row.name for name in names)]


def row_config(row: Row, overrides: Sequence[str] = ()) -> CfgNode:
    """The resolved config of a row; without CUDA it is read all the same, for the CPU.

    Raises:
        ValueError: naming the file and what is wrong in it or in the overrides.
    """
    return _resolved(row.path, tuple(overrides)).clone()


@cache
def row_text(row: Row, overrides: tuple[str, ...] = ()) -> str:
    """The same as YAML, for :func:`config_hash`; made once, which takes its time."""
    return _resolved(row.path, overrides).dump()


@cache
def _resolved(path: Path, overrides: tuple[str, ...]) -> CfgNode:
    here: list[str] = []
    amp: list[str] = []
    if not torch.cuda.is_available() and len(overrides) % 2 == 0:
        pairs = zip(overrides[::2], overrides[1::2], strict=True)
        amp = [x for key, value in pairs if key == "SOLVER.AMP.ENABLED" for x in (key, value)]
        here = ["MODEL.DEVICE", "cpu", *(("SOLVER.AMP.ENABLED", "False") if amp else ())]
    try:
        cfg = load_cfg(str(path), [*overrides, *here])
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    cfg.merge_from_list(amp)
    return cfg


@cache
def flat_text(text: str) -> dict[str, Any]:
    """:func:`complete_config` of a YAML text, parsed once; not to be changed."""
    return complete_config(text)


def config_hash(config: CfgNode | str, *, training: bool = False, tta: bool | None = None) -> str:
    """:func:`row_hash` of a config, or of the YAML text of a run's config.yaml."""
    flat = flat_text(config if isinstance(config, str) else config.dump())
    return row_hash(flat, training=training, tta=tta)
