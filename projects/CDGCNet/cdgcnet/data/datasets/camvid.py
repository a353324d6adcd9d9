"""CamVid, 11 classes (SegNet version), 480 x 360.

``camvid/{train,val}.txt`` hold one "images/… labels/…" pair a line, relative to ``camvid``.

"fit" and "dev" divide train by whole driving sequences, for choices that must not be made on val:
frames of one sequence are so alike that a random part of them would not be held out at all.
"""

from functools import partial
from pathlib import Path

from cdgcnet.data.datasets.catalog import prepare_advice, require_dir
from cdgcnet.data.datasets.catalog import register as register_one

CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("signsymbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

COUNTS = {"train": 367, "val": 101, "test": 233}

# Part of train -> the sequences in it (file names begin with them) and the number of images.
HELD_OUT = {"fit": (("0001TP", "0016E5"), 266), "dev": (("0006R0",), 101)}

_LAYOUT = """  {folder}/
    train.txt, val.txt    lines "images/train/NAME.jpg labels/train/NAME.png"
    images/, labels/      label PNGs hold 0 to 10 in the order sky, building, pole, road, …;
                          255 is ignored"""


def load_list(folder: Path, split: str, name: str) -> list[dict]:
    """Detectron2 dicts of one split, in the list's order.

    Raises:
        FileNotFoundError: for a missing folder, list, image or label.
        ValueError: for a malformed line or an empty list.
    """
    layout = _LAYOUT.format(folder=folder)
    advice = prepare_advice("camvid", folder.parent)
    require_dir(folder, name, layout, advice)
    path = folder / f"{split}.txt"
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset {name}: no list {path}. {advice}\nexpected layout:\n{layout}"
        )
    dicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2:
            raise ValueError(
                f'{path}:{number}: expected "IMAGE LABEL", found {len(fields)} fields: {line!r}'
            )
        image, label = (folder / field for field in fields)
        for file in (image, label):
            if not file.is_file():
                raise FileNotFoundError(f"{path}:{number}: there is no file {file}. {advice}")
        dicts.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": str(label),
                "image_id": image.stem,
            }
        )
    if not dicts:
        raise ValueError(f"dataset {name}: the list {path} is empty. {advice}")
    return dicts


def load_part(folder: Path, part: str, name: str) -> list[dict]:
    """Detectron2 dicts of "fit" or "dev", in the order of the training list.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_list`; for a list with other sequences.
    """
    dicts = load_list(folder, "train", name)
    known = {sequence for sequences, _ in HELD_OUT.values() for sequence in sequences}
    for d in dicts:
        if d["image_id"].split("_")[0] not in known:
            raise ValueError(
                f"dataset {name}: {d['file_name']} is of no sequence of CamVid's training list; "
                f"expected names that begin with {', '.join(sorted(known))}"
            )
    wanted, _ = HELD_OUT[part]
    dicts = [d for d in dicts if d["image_id"].split("_")[0] in wanted]
    if not dicts:
        raise ValueError(
            f"dataset {name}: {folder / 'train.txt'} has no image of {', '.join(wanted)}"
        )
    return dicts


def register(root: Path) -> None:
    """Register ``cdgc_camvid_{train,val,test,fit,dev}`` below ``root/camvid``."""
    folder = root / "camvid"
    names = {split: f"cdgc_camvid_{split}" for split in (*COUNTS, *HELD_OUT)}
    sets = [
        (names[split], partial(load_list, folder, split, names[split]), count)
        for split, count in COUNTS.items()
    ] + [
        (names[part], partial(load_part, folder, part, names[part]), count)
        for part, (_, count) in HELD_OUT.items()
    ]
    for name, load, count in sets:
        register_one(
            name,
            load,
            classes=[n for n, _ in CLASSES],
            colors=[c for _, c in CLASSES],
            official_count=count,
        )
