"""Cityscapes' train ids, made from label ids or polygons."""

import json
import logging
import shlex
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from cdgcnet.data.datasets.catalog import UNKNOWN_LABEL, look_up_table
from cdgcnet.data.datasets.cityscapes_classes import LABEL_IDS
from cdgcnet.data.label_io import read_labels
from cdgcnet.utils.io import atomic_write
from cdgcnet.utils.progress import progress

# The other label ids, 0 to 33 in all, are not scored.
_LUT = np.frombuffer(
    look_up_table({own: i for i, own in enumerate(LABEL_IDS)}, ignored=range(34)), np.uint8
)


def _from_polygons(source: Path) -> np.ndarray:
    try:
        from cityscapesscripts.preparation.json2labelImg import json2labelImg
    except ImportError as error:
        raise ImportError(
            f"{source}: train ids are drawn from polygons by cityscapesscripts, which is not "
            "installed: pip install -e '.[data]' in the repository's folder"
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
        ids = read_labels(source)
        labels = cv2.LUT(ids, _LUT)  # like the encoder below, it releases the GIL
        unknown = ids[labels == UNKNOWN_LABEL]
        if unknown.size:
            raise ValueError(
                f"{source}: label value {int(unknown[0])} is not a Cityscapes label id (0 to 33)"
            )
    # Written once, read every epoch: OpenCV's default gives larger files that decode more slowly.
    png = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 6])[1]
    with atomic_write(target) as tmp_path:
        tmp_path.write_bytes(png.tobytes())


def _make_if_missing(source: Path, target: Path) -> None:
    if target.is_file():  # another process was faster
        return
    try:
        make_train_ids(source, target)
    except OSError as error:
        if error.filename != str(target):
            raise
        tree = target.parents[3]  # above gtFine/SPLIT/CITY
        advice = (
            "make a copy with train ids where you may write: cdgcnet prepare "
            f"cityscapes --src {shlex.quote(str(tree))} --root FOLDER"
        )
        raise OSError(error.errno, f"{error.strerror}; {advice}", error.filename) from error


def make_missing_train_ids(targets: Sequence[Path]) -> None:
    """Make missing ``*_labelTrainIds.png`` files that have a source next to them.

    Several processes may do this at the same time: each file appears whole or not at all.

    Raises:
        ValueError, OSError: naming a broken source, or a file that cannot be written and what to
            do about it.
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
        made = pool.map(lambda pair: _make_if_missing(*pair), sources)
        for _ in progress(made, "train ids", "image", len(sources), leave=True):
            pass
