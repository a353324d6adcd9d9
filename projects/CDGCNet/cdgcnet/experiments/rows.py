"""Rows of the paper's tables: one config file each, ``configs/experiments/PROFILE/*.yaml``."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from cdgcnet.config.defaults import add_cdgcnet_config, load_cfg
from cdgcnet.config.identity import flat_config

GROUPS = ("table1", "table2", "table3", "table4", "table5", "table6", "control", "peer", "ext")
_HEADER = re.compile(r"# (?P<table>[^,]+), (?P<label>.+); paper: (?P<paper>-|\d+(\.\d+)?)")
# Keys that do not change what is measured. MODEL.WEIGHTS does, and STRIDE_IN_1X1 comes with it; but
# a path is no name of its contents, so records carry both and are never mixed (record.py).
_FREE = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.CHECK",
    "INPUT.CACHE",
    "MODEL.CHANNELS_LAST",  # of rounding and time only
    "MODEL.DEVICE",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    "SEED",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.RECIPE_",
    "TEST.BOUNDARY_RATIO",
    "TEST.CHANNELS_LAST",  # the same key's earlier name, in the configs of finished runs
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.ORACLE",
    "TEST.RESUME",
    "TEST.SAVE_",
    "TEST.WORST_IMAGES",
    "TEST.PICTURES",
    "VERSION",
    "VIS_PERIOD",
)


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
    return not key.startswith(_FREE)


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
    """:func:`flat_config` of a YAML text, parsed once; not to be changed."""
    return flat_config(text)


@cache
def _defaults() -> dict[str, Any]:
    cfg = get_cfg()
    add_cdgcnet_config(cfg)
    return flat_config(cfg)


def config_hash(config: CfgNode | str, *, training: bool = False, tta: bool | None = None) -> str:
    """Ten hexadecimal digits that name what a config measures.

    Only what differs from the defaults enters, so that a new key leaves finished rows finished.
    SyncBN and BN are one: a single process has no other. The seed is not part of it.

    Args:
        config: resolved, or as the YAML text of a run's config.yaml.
        training: leave out all of TEST: configs with this hash in common share their weights.
        tta: as if TEST.AUG.ENABLED had this value.
    """
    defaults = _defaults()
    flat = {**defaults, **flat_text(config if isinstance(config, str) else config.dump())}
    if tta is not None:
        flat["TEST.AUG.ENABLED"] = tta
    free = [*_FREE]
    if training:
        free.append("TEST.")
    elif not flat["TEST.AUG.ENABLED"]:
        free.append("TEST.AUG.")  # of no effect
    kept = {}
    for key, value in sorted(flat.items()):
        norm = key.endswith(".NORM") and value in ("SyncBN", "BN")
        default = "BN" if norm and defaults.get(key) == "SyncBN" else defaults.get(key)
        value = "BN" if norm else value
        if value != default and not key.startswith(tuple(free)):
            kept[key] = value
    return hashlib.blake2b(repr(kept).encode(), digest_size=5).hexdigest()
