"""Look at a dataset before a run starts: no broken file shall be found hours later."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image
from tqdm import tqdm

from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_checked_labels

LEVELS = ("none", "labels", "all")
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


def image_size(path: str) -> tuple[int, int]:
    """(H, W) of an upright image, from its header.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing or no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # A PNG without EXIF in its header would be decoded in search of it.
            silent = image.format == "PNG" and "exif" not in image.info
            sideways = not silent and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error
    return (width, height) if sideways else (height, width)


def _problem(entry: dict, num_classes: int, ignore_label: int, decode: bool) -> str | None:
    try:
        path = entry["file_name"]
        size = read_image(path).shape[:2] if decode else image_size(path)
        labels = entry.get("sem_seg_file_name")
        if labels is not None:
            lut = entry.get("sem_seg_lut")
            read_checked_labels(labels, num_classes, ignore_label, size, lut)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def check_data(
    name: str, dicts: Sequence[dict], num_classes: int, ignore_label: int, level: str
) -> None:
    """Read every label and the header of every image of a dataset.

    Args:
        name: of the dataset.
        dicts: Detectron2 dicts.
        num_classes, ignore_label: what the labels may hold.
        level: "labels"; "all" decodes the images too; "none" does nothing.

    Raises:
        ValueError: with the number of broken pairs and the first messages.
    """
    if level == "none":
        return
    look = partial(
        _problem, num_classes=num_classes, ignore_label=ignore_label, decode=level == "all"
    )
    with ThreadPoolExecutor() as pool:
        found = tqdm(
            pool.map(look, dicts), total=len(dicts), desc=f"checking {name}", unit="image",
            disable=None, leave=False,
        )  # fmt: skip
        problems = [problem for problem in found if problem]
    if problems:
        raise ValueError(
            f"dataset {name}: {len(problems)} of {len(dicts)} images cannot be used:\n  "
            + "\n  ".join(problems[:5])
            + ("\n  …" if len(problems) > 5 else "")
            + f"\nAll of them, and more: python tools/prepare_data.py audit {name} (own data: with "
            "--config-file). "
            "(DATASETS.CHECK none skips this look at the data.)"
        )
