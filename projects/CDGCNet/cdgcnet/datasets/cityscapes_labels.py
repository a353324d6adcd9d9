"""Cityscapes' train ids, made from label ids or polygons."""

import json
import logging
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..files import read_labels, replacing
from .catalog import UNKNOWN_LABEL, look_up_table
from .cityscapes_classes import LABEL_IDS

# The other label ids, 0 to 33 in all, are not scored.
_LUT = look_up_table({own: i for i, own in enumerate(LABEL_IDS)}, ignored=range(34))


def _from_polygons(source: Path) -> np.ndarray:
    try:
        from cityscapesscripts.preparation.json2labelImg import json2labelImg
    except ImportError as error:
        raise ImportError(
            f"{source}: train ids are drawn from polygons by cityscapesscripts, which is not "
            "installed: pip install cityscapesscripts"
        ) from error
    try:
        json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{source}: not a readable JSON file ({error})") from error
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "labels.png"
        try:
            json2labelImg(str(source), str(drawn), "trainIds")
        except (Exception, SystemExit) as error:  # it exits on objects it does not know
            raise ValueError(f"{source}: no Cityscapes polygons ({error})") from error
        return read_labels(drawn)


def make_train_ids(source: Path, target: Path) -> None:
    """Write the train ids (0-18, 255) of one image.

    Args:
        source: ``*_labelIds.png`` or ``*_polygons.json``.
        target: PNG to write.

    Raises:
        ValueError, OSError: naming the file.
    """
    if source.suffix == ".json":
        labels = _from_polygons(source)
    else:
        labels = read_labels(source)
        ids = labels
        labels = np.frombuffer(_LUT, np.uint8)[ids]
        unknown = ids[labels == UNKNOWN_LABEL]
        if unknown.size:
            raise ValueError(
                f"{source}: label value {int(unknown[0])} is no Cityscapes label id (0 to 33)"
            )
    with replacing(target) as beside:
        Image.fromarray(labels).save(beside)


def make_missing_train_ids(targets: Sequence[Path]) -> None:
    """Make those ``*_labelTrainIds.png`` files that are not there and have a source beside them.

    Several processes may do this at once: each file appears whole or not at all.
    """
    sources = []
    for target in targets:
        if target.is_file():
            continue
        for ending in ("labelIds.png", "polygons.json"):
            source = target.with_name(target.name.replace("labelTrainIds.png", ending))
            if source.is_file():
                sources.append((source, target))
                break
    if not sources:
        return
    logging.getLogger(__name__).info(
        f"Making {len(sources)} *_labelTrainIds.png in {sources[0][1].parent.parent}"
    )
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda pair: make_train_ids(*pair), sources)
        for _ in tqdm(made, total=len(sources), desc="train ids", unit="image"):
            pass
