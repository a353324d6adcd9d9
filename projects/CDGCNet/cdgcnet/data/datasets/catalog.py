"""What all registrations share: registering, listing pairs, colors, errors for missing files."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

IGNORE_LABEL = 255
UNKNOWN_LABEL = 254  # a look-up table maps values that it does not know to it
EVALUATOR_TYPE = "cdgc_sem_seg"
SET_ROOT = "Set the environment variable DETECTRON2_DATASETS to the folder that holds it."


def register(
    name: str,
    load: Callable[[], list[dict]],
    *,
    classes: Sequence[str],
    colors: Sequence[Sequence[int]],
    ids: Sequence[int] | None = None,
    **metadata: Any,
) -> None:
    """Register a dataset for semantic segmentation; an earlier one of that name is replaced.

    Args:
        name: "cdgc_{dataset}_{split}".
        load: returns Detectron2 dicts with "file_name" and, if labeled, "sem_seg_file_name".
        classes, colors: one name and RGB color per contiguous class id.
        ids: the dataset's own id of each class, if it differs from the contiguous one.
        metadata: further entries of the MetadataCatalog.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        stuff_colors=[tuple(c) for c in colors],
        ignore_label=IGNORE_LABEL,
        evaluator_type=EVALUATOR_TYPE,
        stuff_dataset_id_to_contiguous_id={
            own: i for i, own in enumerate(ids if ids is not None else range(len(classes)))
        },
        **metadata,
    )


def color_map(count: int) -> list[tuple[int, int, int]]:
    """The first colors of the PASCAL VOC map, all different up to 256.

    Bits 0, 3 and 6 of an index are the highest bits of red, 1, 4, 7 of green, 2, 5 of blue.
    """
    colors = []
    for index in range(count):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colors.append((channels[0], channels[1], channels[2]))
    return colors


def look_up_table(ids: Mapping[int, int], ignored: Iterable[int]) -> bytes:
    """256 values that turn a label file's raw values into classes.

    Args:
        ids: raw value -> contiguous class, fewer than 254 classes.
        ignored: raw values without a class.

    Returns:
        A table in which every other raw value is 254, which is refused when labels are checked.
    """
    table = dict.fromkeys(ignored, IGNORE_LABEL) | dict(ids)
    return bytes(table.get(value, UNKNOWN_LABEL) for value in range(256))


def list_pairs(
    name: str,
    pairs: Iterable[tuple[str, Path, Path | None]],
    advice: str,
    lut: bytes | None = None,
) -> list[dict]:
    """Detectron2 dicts of (image id, image, labels or None); every file is known to exist.

    Args:
        name: of the dataset, for messages.
        pairs: in the order of the result.
        advice: how to get missing files.
        lut: goes into the dicts as "sem_seg_lut", for labels that are not contiguous classes.

    Raises:
        FileNotFoundError: for missing files, with their number and the first, or an empty split.
    """
    dicts = []
    missing = []
    for image_id, image, labels in pairs:
        files = [image] if labels is None else [image, labels]
        missing += [f for f in files if not f.is_file()]
        entry: dict[str, Any] = {"file_name": str(image), "image_id": image_id}
        if labels is not None:
            entry["sem_seg_file_name"] = str(labels)
            if lut is not None:
                entry["sem_seg_lut"] = lut
        dicts.append(entry)
    if missing:
        first = ", ".join(map(str, missing[:3])) + (", …" if missing[3:] else "")
        raise FileNotFoundError(
            f"dataset {name}: {len(missing)} files of {len(dicts)} images are missing: {first}. "
            f"{advice}"
        )
    if not dicts:
        raise FileNotFoundError(f"dataset {name}: the split is empty. {advice}")
    return dicts


def read_stems(path: Path, name: str, advice: str) -> list[str]:
    """The image names in a split list, one on each line.

    Raises:
        FileNotFoundError: naming the list and how to get it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"dataset {name}: there is no list {path.absolute()}. {advice}")
    return [
        line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]


def prepare_advice(what: str, root: Path) -> str:
    """Which command makes a dataset."""
    return (
        f"Prepare it with `cdgcnet prepare {what} --src DOWNLOADS --root "
        f"{shlex.quote(str(root))}` (docs/data.md). Is it elsewhere? {SET_ROOT}"
    )


def require_dir(folder: Path, name: str, layout: str, advice: str = SET_ROOT) -> None:
    """Refuse a dataset whose folder is missing.

    Raises:
        FileNotFoundError: naming the folder, the expected layout and how to get it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"dataset {name}: there is no folder {folder.absolute()}\nexpected layout:\n{layout}\n"
            f"{advice}"
        )
