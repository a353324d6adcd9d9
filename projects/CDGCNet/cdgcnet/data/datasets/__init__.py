"""Dataset registrations, by explicit call: importing this package registers nothing.

Neither does it import Detectron2, which the worker processes of ``cdgcnet prepare`` do not need.
"""

import os
from pathlib import Path

from cdgcnet.data.datasets.custom import register_folders

__all__ = ["datasets_root", "register_all", "register_folders"]


def datasets_root(root: str | os.PathLike | None = None) -> Path:
    """``root``, or DETECTRON2_DATASETS, or ``datasets`` in the working folder."""
    return Path(root or os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_all(root: str | os.PathLike | None = None) -> None:
    """Register every dataset of CDGCNet below ``root`` (by default DETECTRON2_DATASETS).

    It may be called again, also with another root; the last call counts. Nothing is read from disk
    before a dataset is used.
    """
    from cdgcnet.data.datasets import (
        ade20k,
        camvid,
        cityscapes,
        coco_stuff,
        pascal_context,
        streets,
        voc,
    )

    base = datasets_root(root)
    for dataset in (cityscapes, voc, coco_stuff, pascal_context, ade20k, camvid, streets):
        dataset.register(base)
