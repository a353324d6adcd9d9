"""Checks datasets before a run starts, so that no fault in the data shows up hours later."""

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from cdgcnet.data.datasets.catalog import EVALUATOR_TYPE
from cdgcnet.data.decoding import image_size
from cdgcnet.data.image_folder import check_utf8
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_sample_labels
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.utils.progress import progress

_SHOWN = 5
_SPLIT = re.compile(r"(?<=_)(train|val|test|trainval|dev|fit)(_[a-z]+)?$")


# ---------------------------------------------------------------- names and classes


def _first_difference(found: list[str], expected: list[str]) -> str:
    return next(
        f"class {i} is {a!r} in the first and {b!r} in the second"
        for i, (a, b) in enumerate(zip(found, expected, strict=True))
        if a != b
    )


def similar_datasets(name: str) -> str:
    """A sentence for a name that is not registered: what was meant, or else what there is.

    Only datasets of this project and own data are named, not those of Detectron2.
    """
    registered = {n: MetadataCatalog.get(n) for n in sorted(DatasetCatalog.list())}
    ours = [n for n, m in registered.items() if m.get("evaluator_type") == EVALUATOR_TYPE]
    if close := difflib.get_close_matches(name, ours):
        return f"Did you mean {' or '.join(close)}?"
    if name and (parts := [n for n in ours if name in n]):
        return f"Did you mean one of {_by_split(parts)}?"
    return f"There are {_by_split(ours)}."


def _by_split(names: Sequence[str]) -> str:
    """Names of datasets in one text, "a_{train,val}, b_test"."""
    splits: dict[str, list[str]] = {}
    for name in names:
        found = _SPLIT.search(name)
        end = found.group() if found else ""
        splits.setdefault(name.removesuffix(end), []).append(end)
    return ", ".join(
        base + (ends[0] if len(ends) == 1 else f"{{{','.join(ends)}}}")
        for base, ends in splits.items()
    )


def _unregistered(key: str, name: str) -> str:
    return (
        f"{key} names {name!r}, which is not registered. {similar_datasets(name)} Own data is "
        "registered with DATASETS.FOLDERS (docs/own_data.md)."
    )


def _wrong_class_count(key: str, name: str, classes: Sequence[str], expected: int) -> str:
    """The message for a dataset whose number of classes is not the model's."""
    if not classes:
        return (
            f"{key} names {name}, which has no stuff_classes in its metadata: it is not a dataset "
            "for semantic segmentation"
        )
    hint = f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {len(classes)}"
    if expected == len(classes) + 1:
        hint += "; ignored pixels (255) are not a class"
    return (
        f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {expected}; {name} ({key}) has {len(classes)} classes, "
        f"{classes[0]} to {classes[-1]}: {hint}"
    )


def check_datasets(cfg: CfgNode, train: bool) -> None:
    """Refuse unknown datasets and class lists that do not match, without reading any data.

    Args:
        cfg: its DATASETS.TRAIN and DATASETS.TEST are checked.
        train: False leaves out DATASETS.TRAIN.

    Raises:
        ValueError: naming the key, its value and what there is.
    """
    first: tuple[str, list[str]] | None = None
    for key in ("TRAIN", "TEST") if train else ("TEST",):
        names = list(cfg.DATASETS[key])
        if not names:
            raise ValueError(f"DATASETS.{key} is empty; expected the name of a dataset")
        for name in names:
            if name not in DatasetCatalog.list():
                raise ValueError(_unregistered(f"DATASETS.{key}", name))
            classes = MetadataCatalog.get(name).get("stuff_classes", [])
            expected = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
            if len(classes) != expected:
                raise ValueError(_wrong_class_count(f"DATASETS.{key}", name, classes, expected))
            first = first or (f"DATASETS.{key} {name}", classes)
            if classes != first[1]:
                raise ValueError(
                    f"DATASETS.{key} {name} and {first[0]} have different classes: "
                    f"{_first_difference(classes, first[1])}"
                )


# ---------------------------------------------------------------- files and labels


def _inspect(
    sample: dict, spec: LabelSpec, max_pixels: int, decode: bool
) -> tuple[np.ndarray, str | None]:
    """The class ids that occur in a sample, (256,) bool, and what is wrong with it, if anything."""
    try:
        path = sample["file_name"]
        check_utf8(path)
        if decode:
            size = read_image(path, max_pixels=max_pixels).shape[:2]
        else:
            size = image_size(path, max_pixels)
        labels = read_sample_labels(sample, spec, (size[0], size[1]), max_pixels)
    except (ValueError, OSError) as error:
        return np.zeros(256, bool), str(error)
    if labels is None:
        return np.zeros(256, bool), None
    return cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel() > 0, None


def _classes_in(name: str, dicts: Sequence[dict], cfg: CfgNode) -> np.ndarray:
    """(M,) bool: which classes occur in a dataset.

    Raises:
        ValueError: with the number of broken samples and the first messages.
    """
    spec = LabelSpec.from_config(cfg)

    def inspect(sample: dict) -> tuple[np.ndarray, str | None]:
        return _inspect(sample, spec, cfg.INPUT.MAX_PIXELS, cfg.DATASETS.CHECK == "all")

    with ThreadPoolExecutor() as pool:
        results = list(progress(pool.map(inspect, dicts), f"checking {name}", "image", len(dicts)))
    problems = [problem for _, problem in results if problem]
    if problems:
        raise ValueError(
            f"dataset {name}: {len(problems)} of {len(dicts)} images cannot be used:\n  "
            + "\n  ".join(problems[:_SHOWN])
            + ("\n  …" if len(problems) > _SHOWN else "")
            + f"\nAn audit lists all of them: cdgcnet audit {name} (own data: "
            "with --config-file). DATASETS.CHECK none skips this check."
        )
    occurs = np.any([found for found, _ in results], axis=0)
    return occurs[: spec.num_classes] & (np.arange(spec.num_classes) != spec.ignore_label)


def _check_coverage(where: str, occurs: np.ndarray, classes: Sequence[str], train: bool) -> None:
    """Refuse labels that nothing can be learned from or scored on; warn of missing classes.

    Args:
        where: key and dataset names, for messages.
        occurs: (M,) bool, which classes occur.
        classes: M names.
        train: whether a single class is refused too: its loss is 0 from the start.

    Raises:
        ValueError: if no class occurs, or in training a single one.
    """
    logger = logging.getLogger(__name__)
    present = [name for name, there in zip(classes, occurs, strict=True) if there]
    if not present:
        raise ValueError(
            f"{where}: no pixel of any label image has a class, all of them are ignored. Are the "
            "values of the classes right (for own data: IDS and IGNORE in DATASETS.FOLDERS)?"
        )
    if len(present) == 1:
        message = (
            f"{where}: {present[0]!r} is the only class that occurs, so every prediction of it is "
            "right. Give the rest of the image a class of its own, such as background, instead of "
            "the ignore label"
        )
        if train:
            raise ValueError(message)
        logger.warning(message)
    elif len(present) < len(classes):
        absent = [name for name, there in zip(classes, occurs, strict=True) if not there]
        consequence = "it cannot be learned" if train else "its IoU is undefined"
        logger.warning(
            f"{where}: {len(absent)} of {len(classes)} classes never occur ({consequence}): "
            f"{', '.join(absent[:20])}{', …' if len(absent) > 20 else ''}"
        )


def _check_labeled(name: str, dicts: Sequence[dict]) -> None:
    """
    Raises:
        ValueError: if an image of a training set has no label image.
    """
    unlabeled = [d["file_name"] for d in dicts if not d.get("sem_seg_file_name")]
    if unlabeled:
        raise ValueError(
            f"DATASETS.TRAIN {name}: {len(unlabeled)} of {len(dicts)} images have no labels, the "
            f"first is {unlabeled[0]}; training needs a label image for every image"
        )


def check_data(cfg: CfgNode, datasets: Mapping[str, Sequence[dict]]) -> None:
    """Read every label image, and the header of every image, of the datasets of a run.

    Args:
        cfg: DATASETS.{TRAIN, TEST, CHECK}, INPUT.MAX_PIXELS, MODEL.SEM_SEG_HEAD. CHECK "labels" is
            as above, "all" decodes the images too, "none" opens no file.
        datasets: Detectron2 dicts by name.

    Raises:
        ValueError: for files that cannot be used, and for labels without a class or, in training,
            with only one; with any CHECK, for empty datasets and training images without labels.
    """
    for name, dicts in datasets.items():
        if not dicts:
            raise ValueError(f"dataset {name}: it is registered, but holds no images")
    for name in cfg.DATASETS.TRAIN:
        _check_labeled(name, datasets.get(name, ()))
    if cfg.DATASETS.CHECK == "none":
        return
    occurs = {name: _classes_in(name, dicts, cfg) for name, dicts in datasets.items()}
    train = [name for name in cfg.DATASETS.TRAIN if name in datasets]
    groups = [("TRAIN", train)] if train else []
    groups += [("TEST", [name]) for name in cfg.DATASETS.TEST if name in datasets]
    for key, names in groups:
        if any("sem_seg_file_name" in d for name in names for d in datasets[name]):
            where = f"DATASETS.{key} {' + '.join(names)}"
            classes = MetadataCatalog.get(names[0]).stuff_classes
            union = np.any([occurs[name] for name in names], axis=0)
            _check_coverage(where, union, classes, train=key == "TRAIN")
