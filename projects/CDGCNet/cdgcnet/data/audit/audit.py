"""Checks whether the files of a dataset are sound: decodes every image and label once.

Reading order: ``issues`` (what can be wrong), ``checks`` (how it is found), this file, ``report``
(the page with pictures).
"""

from collections.abc import Collection, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool

from detectron2.data import DatasetCatalog, MetadataCatalog

from cdgcnet.data.audit.checks import (
    Rules,
    digest_of,
    find_degenerate,
    find_odd_palettes,
    find_shared,
    find_twins,
    gray_values,
    inspect,
    size_of,
)
from cdgcnet.data.audit.issues import Issue, IssueType, Report
from cdgcnet.data.datasets import voc
from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.data.preflight import similar_datasets
from cdgcnet.utils.progress import progress
from cdgcnet.visualization.colors import class_colors

# For each split those that must share no image with it.
_COUNTERPARTS = {
    "train": ("val", "test"),
    "train_aug": ("val",),
    "train_extra": ("val",),
    "val": ("train", "train_aug", "train_extra"),
    "test": ("train",),
}


def audit(
    name: str,
    against: Sequence[str] | None = None,
    workers: int = 1,
    max_pixels: int = MAX_PIXELS,
) -> Report:
    """Check a registered dataset.

    Args:
        name: of the dataset.
        against: datasets that must share no image with it; None: its counterparts that are there,
            such as val for train.
        workers: threads.
        max_pixels: height x width of an image or label at most.

    Raises:
        ValueError, FileNotFoundError: for a dataset that is not registered or not there.
    """
    dicts = _load(name)
    metadata = MetadataCatalog.get(name)
    classes, colors = metadata.stuff_classes, class_colors(metadata)
    others, notes = _others(name, against)
    rules = Rules(
        spec=LabelSpec(len(classes), metadata.get("ignore_label", 255)),
        # VOC's void border is bright in its palette, and belongs to no class.
        grays=gray_values([*colors, *voc.COLORS, (224, 224, 192), (0, 0, 0), (255, 255, 255)]),
        labeled=any("sem_seg_file_name" in d for d in dicts),
        max_pixels=max_pixels,
    )
    with ThreadPool(max(workers, 1)) as pool:
        found = pool.imap(partial(inspect, rules=rules), dicts)
        samples = list(progress(found, name, "image", len(dicts), leave=True))
        issues = [issue for s in samples for issue in s.issues]
        sizes = frozenset(size_of(d) for d in dicts) - {None}
        for other, other_dicts in others.items():
            hashed = pool.imap(partial(_digest_if_sized, sizes=sizes), other_dicts)
            digests = list(progress(hashed, other, "image", len(other_dicts), leave=True))
            issues += find_shared(samples, other, other_dicts, digests)
    issues += find_twins(samples)
    issues += find_odd_palettes(samples)
    if rules.labeled:
        issues += find_degenerate(samples, classes)
    official = metadata.get("official_count")
    if official is not None and official != len(samples):
        issues.append(
            Issue(IssueType.UNOFFICIAL_COUNT, name, f"{len(samples)}, officially {official}")
        )
    return Report(name, classes, colors, samples, issues, notes)


def _digest_if_sized(dataset_dict: dict, sizes: Collection[int | None]) -> str:
    """The digest of an image that has as many bytes as one that is audited; "" for others."""
    try:
        return digest_of(dataset_dict) if size_of(dataset_dict) in sizes else ""
    except (ValueError, OSError):
        return ""  # an audit of its own dataset reports it


def _load(name: str) -> list[dict]:
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"the dataset {name!r} is not registered. {similar_datasets(name)} Own data needs "
            "--config-file, a config that names it in DATASETS.FOLDERS (docs/own_data.md)."
        )
    if not MetadataCatalog.get(name).get("stuff_classes"):
        raise ValueError(
            f"{name} is not a dataset for semantic segmentation: it has no stuff_classes"
        )
    try:
        dicts = DatasetCatalog.get(name)
    except AssertionError as error:  # Detectron2's own loaders check with it
        raise ValueError(f"{name}: {error}") from error
    if not dicts:
        raise ValueError(f"{name} has no images")
    return dicts


def _others(name: str, against: Sequence[str] | None) -> tuple[dict[str, list[dict]], list[str]]:
    """Dicts of the sets to compare with, and notes on what they are."""
    if against is not None:
        if name in against:
            raise ValueError(f"--against {name}: a set shares all its images with itself")
        return {other: _load(other) for other in against}, [
            f"compared with {other}" for other in against
        ]
    others: dict[str, list[dict]] = {}
    notes = []
    for split, counterparts in _COUNTERPARTS.items():
        if not name.endswith(f"_{split}"):
            continue
        for counterpart in counterparts:
            other = f"{name.removesuffix(split)}{counterpart}"
            if other not in DatasetCatalog.list():
                continue
            try:
                others[other] = _load(other)
                notes.append(f"compared with {other}: {len(others[other])} images")
            except (OSError, ValueError) as error:
                notes.append(f"not compared with {other}: {str(error).splitlines()[0]}")
    return others, notes
