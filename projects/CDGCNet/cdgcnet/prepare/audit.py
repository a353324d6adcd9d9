"""Are the files of a data set sound? Every image and label decoded once, and compared.

Shape shorthand: M classes, counts are pixels per class (M,).
"""

import argparse
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tabulate import tabulate
from tqdm import tqdm

from ..config import load_cfg
from ..datasets import register_all, register_folders, voc
from ..files import read_image, read_labels
from .audit_page import check_page, write_page
from .findings import KINDS, Problem, Report, Sample

_SHOWN = 10
# Splits that must share no image with a split of this name.
_COUNTERPARTS = {
    "train": ("val", "test"),
    "train_aug": ("val",),
    "train_extra": ("val",),
    "val": ("train", "train_aug", "train_extra"),
    "test": ("train",),
}


@dataclass(frozen=True)
class _Rules:
    """What the labels of a set may hold; ``greys``: colours of palettes as Pillow greys them."""

    num_classes: int
    ignore_label: int
    greys: frozenset[int]
    labelled: bool
    problems: list[Problem] = field(default_factory=list)
