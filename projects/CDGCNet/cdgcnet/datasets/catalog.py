"""What all registrations share: idempotent registration and errors for missing files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

IGNORE_LABEL = 255
EVALUATOR_TYPE = "cdgc_sem_seg"


def register(
    name: str,
    load: Callable[[], list[dict]],
    *,
    classes: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    **metadata: Any,
) -> None:
    """Register a semantic segmentation set, replacing an earlier registration of that name.

    Args:
        name: "cdgc_{data set}_{split}".
        load: returns Detectron2 dicts with "file_name" and, if labelled, "sem_seg_file_name".
        classes, colors: one name and RGB colour per contiguous class id.
        metadata: further entries of the MetadataCatalog.
    """
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        stuff_colors=[tuple(c) for c in colors],
        ignore_label=IGNORE_LABEL,
        evaluator_type=EVALUATOR_TYPE,
        **metadata,
    )


def require_dir(folder: Path, name: str, layout: str) -> None:
    """Refuse a missing data set.

    Raises:
        FileNotFoundError: naming the folder looked in, the layout and the variable to set.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data set {name}: there is no folder {folder.absolute()}\nexpected layout:\n{layout}\n"
            "Set the environment variable DETECTRON2_DATASETS to the folder that holds it."
        )
