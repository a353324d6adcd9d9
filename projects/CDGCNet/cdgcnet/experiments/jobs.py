"""Expands the rows of a table to jobs: one per configuration and seed."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from cdgcnet.experiments.rows import Row, config_hash, row_config, row_text

DEV = ("DATASETS.TRAIN", '("cdgc_camvid_fit",)', "DATASETS.TEST", '("cdgc_camvid_dev",)')
TTA = ("TEST.AUG.ENABLED", "True")


@dataclass(frozen=True)
class Job:
    """One row with one seed.

    Attributes:
        row: of the table.
        cfg: resolved.
        overrides: KEY VALUE pairs on top of the row's files, without the seed.
        hash, training: hash of the config, and of its training alone.
        seed: of the run.
    """

    row: Row
    cfg: CfgNode
    overrides: tuple[str, ...]
    hash: str
    training: str
    seed: int

    @property
    def hash_without_tta(self) -> str:
        return config_hash(row_text(self.row, self.overrides), tta=False)


def split_overrides(row: Row, split: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """The overrides that make a row train and test on a split.

    Raises:
        ValueError: for split "dev" of a row that does not train on CamVid.
    """
    if split == "val":
        return tuple(overrides)
    trained_on = tuple(row_config(row, overrides).DATASETS.TRAIN)
    if trained_on != ("cdgc_camvid_train",):
        raise ValueError(
            f"--split dev: {row.path.name} is trained on {', '.join(trained_on)}; only "
            "cdgc_camvid_train has a held-out part"
        )
    return (*overrides, *DEV)


def make_jobs(
    rows: Sequence[Row], seeds: int, split: str, overrides: Sequence[str], tta: bool = False
) -> list[Job]:
    """All rows with seed 1, then with seed 2, …; rows that share a configuration give one job.

    Args:
        rows: of a table.
        seeds: how many, from 1 up.
        split: "val" or "dev".
        overrides: KEY VALUE pairs.
        tta: add each row with test-time augmentation.

    Raises:
        ValueError: naming what is wrong in a row's config or the overrides.
    """
    plain = []
    for row in rows:
        pairs = split_overrides(row, split, overrides)
        for extra in ((), TTA) if tta else ((),):
            changed = (*pairs, *extra)
            text = row_text(row, changed)
            hashes = config_hash(text), config_hash(text, training=True)
            plain.append((row, row_config(row, changed), changed, *hashes))
    jobs: dict[tuple[str, int], Job] = {}
    for seed in range(1, seeds + 1):
        for row, cfg, pairs, row_hash, training in plain:
            jobs.setdefault((row_hash, seed), Job(row, cfg, tuple(pairs), row_hash, training, seed))
    return list(jobs.values())
