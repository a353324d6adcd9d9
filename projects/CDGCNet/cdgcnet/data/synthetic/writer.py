"""Writes street scenes in the Cityscapes folder layout, for use where nothing can be downloaded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from cdgcnet.data.datasets.cityscapes_classes import LABEL_IDS
from cdgcnet.data.synthetic.renderer import Array
from cdgcnet.data.synthetic.scene import MIN_SIZE, draw_scene
from cdgcnet.utils.progress import progress
from cdgcnet.utils.worker import WorkerPool

GENERATOR_VERSION = 2  # raise it with every change that moves a pixel
TRAIN_ID_OF_LABEL_ID = {label_id: i for i, label_id in enumerate(LABEL_IDS)}  # others: IGNORED
IGNORED = 255
CITY_OF_SPLIT = {"train": "trainville", "val": "valstadt"}


def write_street_scenes(
    root: str | Path,
    *,
    num_train: int = 240,
    num_val: int = 40,
    height: int = 160,
    width: int = 320,
    seed: int = 0,
    workers: int = 1,
) -> Path:
    """Write `num_train` + `num_val` scenes of height x width pixels below `root`, once.

    The tree has the Cityscapes layout (leftImg8bit, gtFine with labelIds and labelTrainIds) and a
    streets.json with the parameters. It is built next to ``root`` and renamed when it is complete,
    so a reader or a second writer never sees half of it. A killed process may leave a hidden
    folder ``.NAME-*``.

    Args:
        root: folder to write.
        num_train, num_val: number of scenes.
        height, width: of a scene in pixels.
        seed: of the random choices. The scenes do not depend on anything else.
        workers: processes that draw; 1 draws in the calling process.

    Returns:
        ``root``, at once if it already holds this dataset.

    Raises:
        ValueError: for a bad number, or if ``root`` exists and holds anything else; nothing is
            ever overwritten.
        OSError: if a file cannot be written.
    """
    if min(num_train, num_val, workers) < 1 or min(height, width) < MIN_SIZE or seed < 0:
        raise ValueError(
            f"need num_train, num_val, workers >= 1, sides >= {MIN_SIZE} and seed >= 0, got "
            f"{num_train=}, {num_val=}, {height=}, {width=}, {seed=}, {workers=}"
        )
    root = Path(root)
    wanted = {"generator_version": GENERATOR_VERSION, "num_train": num_train, "num_val": num_val,
              "height": height, "width": width, "seed": seed}  # fmt: skip
    if root.exists():
        _check_tree(root, wanted)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent)
        )
        # Made by mkdir, because others may not enter the folder that mkdtemp makes.
        tree = Path(scratch) / "tree"
        jobs = [("train", i) for i in range(num_train)] + [("val", i) for i in range(num_val)]
        draw = partial(_draw_and_write, tree, seed, height, width)
        drawn: Iterator[None] = map(draw, jobs)
        if workers > 1:
            pool = stack.enter_context(WorkerPool(workers))
            drawn = pool.map(draw, jobs)
        for _ in progress(drawn, f"drawing {root.name}", "scene", len(jobs), leave=True):
            pass
        (tree / "streets.json").write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        try:
            tree.rename(root)
        except OSError:
            if not root.exists():
                raise
            _check_tree(root, wanted)  # another process was faster; its tree is the same
    return root


def _check_tree(root: Path, wanted: dict[str, int]) -> None:
    try:
        found = json.loads((root / "streets.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"no readable streets.json ({type(error).__name__})"
    if found != wanted:
        raise ValueError(f"{root} exists with {found}, expected {wanted}: name another folder")


def _draw_and_write(tree: Path, seed: int, height: int, width: int, job: tuple[str, int]) -> None:
    split, index = job
    number = list(CITY_OF_SPLIT).index(split)
    picture, label_ids = draw_scene((seed, number, index), height, width)
    _write_scene(tree, split, index, picture, label_ids)


def _write_scene(tree: Path, split: str, index: int, picture: Array, label_ids: Array) -> None:
    train_ids = np.full(256, IGNORED, np.uint8)
    train_ids[list(TRAIN_ID_OF_LABEL_ID)] = list(TRAIN_ID_OF_LABEL_ID.values())
    city = CITY_OF_SPLIT[split]
    for folder, suffix, pixels in (
        ("leftImg8bit", "leftImg8bit", picture[..., ::-1]),  # cv2 writes BGR
        ("gtFine", "gtFine_labelIds", label_ids),
        ("gtFine", "gtFine_labelTrainIds", train_ids[label_ids]),
    ):
        path = tree / folder / split / city / f"{city}_{index:06d}_000019_{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), pixels):
            raise OSError(f"cv2 could not write {path}")
