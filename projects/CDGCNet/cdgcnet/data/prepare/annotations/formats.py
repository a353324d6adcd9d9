"""Reads the annotation files of COCO, labelme, CVAT and Cityscapes.

Each reader returns the annotated images and the class names that the file lists, in its order.
"""

import base64
import binascii
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from cdgcnet.data.datasets.pairing import PairingRule, shown
from cdgcnet.data.decoding import open_file, open_image
from cdgcnet.data.image_folder import files_in, images_in
from cdgcnet.data.prepare.annotations.shapes import (
    AnnotatedImage,
    Bitmap,
    CocoSegmentation,
    Point,
    Polygon,
    Region,
    Shape,
    box,
    ellipse,
    mask_of_runs,
)

CROWD_LAYER = -1  # a crowd is a rough outline: single objects cover it


def _load_json(path: Path) -> Any:
    try:
        with open_file(path) as file:
            return json.loads(file.read().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error})") from error


class _Images:
    """Finds the image files that an annotation file names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = images_in(folder, recursive=True)
        self.by_path = {p.relative_to(folder).as_posix(): p for p in paths}
        self.by_name: dict[str, list[Path]] = {}
        for path in paths:
            self.by_name.setdefault(path.name, []).append(path)

    def find(self, name: str) -> Path | None:
        """By the path below the folder, or by a file name that occurs once."""
        same_name = self.by_name.get(Path(name).name, [])
        return self.by_path.get(name) or (same_name[0] if len(same_name) == 1 else None)

    def stem(self, image: Path) -> str:
        return image.relative_to(self.folder).with_suffix("").as_posix()

    def require(self, names: Sequence[str], source: Path) -> None:
        """Refuse names without a file."""
        missing = [name for name in names if self.find(name) is None]
        if missing:
            raise FileNotFoundError(
                f"{source}: {len(missing)} of {len(names)} images are not in --images "
                f"{self.folder}: {shown(missing)}"
            )


def read_coco(
    annotations: Path, images: Path, crowd_ignored: bool = False
) -> tuple[list[AnnotatedImage], list[str]]:
    """COCO instances: one JSON file with "images", "annotations" and "categories".

    Raises:
        FileNotFoundError, ValueError: naming the file and the entry that is wrong.
    """
    data = _load_json(annotations)
    keys = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(k), list) for k in keys):
        raise ValueError(f"{annotations}: expected a COCO file with the lists {', '.join(keys)}")
    try:
        names = {c["id"]: str(c["name"]) for c in sorted(data["categories"], key=_id)}
        files = {i["id"]: str(i["file_name"]) for i in data["images"]}
        sizes = {i["id"]: (int(i["height"]), int(i["width"])) for i in data["images"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{annotations}: an image or category lacks {error}") from error
    found = _Images(images)
    found.require(list(files.values()), annotations)
    shapes: dict[Any, list[Shape]] = {number: [] for number in files}
    for entry in data["annotations"]:
        number = entry.get("id") if isinstance(entry, dict) else entry
        where = f"{annotations}: annotation {number}"
        try:
            name, target = names[entry["category_id"]], shapes[entry["image_id"]]
            segmentation = entry["segmentation"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}: missing or unknown {error}") from error
        if not segmentation or not isinstance(segmentation, (list, dict)):
            raise ValueError(f"{where} has no segmentation; boxes alone cannot be imported")
        crowd = bool(entry.get("iscrowd"))
        region = CocoSegmentation(segmentation)
        layer = CROWD_LAYER if crowd else 0
        target.append(Shape(name, region, layer, ignored=crowd and crowd_ignored))
    annotated = []
    for number, file in files.items():
        image = found.find(file)
        assert image is not None  # required above
        annotated.append(AnnotatedImage(image, found.stem(image), shapes[number], sizes[number]))
    return annotated, list(names.values())


def _id(category: dict) -> int:
    return int(category["id"])


def _per_file(
    annotations: Path,
    rule: PairingRule,
    read: Callable[[dict], tuple[list[Shape], tuple[int, int] | None]],
) -> tuple[list[AnnotatedImage], list[str]]:
    """Formats with one JSON file for each image; images without a file are left out."""
    if not annotations.is_dir():
        raise FileNotFoundError(f"--annotations {annotations}: there is no such folder")
    labels = rule.find_labels(rule.image_names())
    used = {label for label in labels.values() if label}
    unused = [label for label in rule.label_names() if label not in used]
    if unused or not used:
        hint = rule.hint(next(iter(labels)), [i for i, label in labels.items() if not label])
        raise FileNotFoundError(
            f"--annotations {annotations}: "
            + (f"{len(unused)} files have no image: {shown(unused)}" if unused else "no file fits")
            + f" in --images {rule.images}. {hint}"
        )
    annotated = []
    for image, label in labels.items():
        if label is None:
            continue
        path = annotations / label
        try:
            shapes, size = read(_load_json(path))
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: not a file of this format ({error!r})") from error
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: {error}") from error
        annotated.append(AnnotatedImage(rule.images / image, rule.stem(image), shapes, size))
    return annotated, sorted({shape.name for one in annotated for shape in one.shapes})


def _points(values: Iterable[Sequence[float]]) -> list[Point]:
    return [(float(x), float(y)) for x, y in values]


def _labelme_region(shape: dict) -> Region:
    kind, points = shape.get("shape_type") or "polygon", _points(shape["points"])
    if kind == "polygon":
        return Polygon(points)
    if kind == "rectangle" and len(points) == 2:
        return box(points[0], points[1])
    if kind == "circle" and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = float(np.hypot(edge_x - x, edge_y - y))
        return ellipse((x, y), (radius, radius))
    if kind == "mask":
        try:
            data = base64.b64decode(shape["mask"], validate=True)
        except (binascii.Error, TypeError) as error:
            raise ValueError(f"a mask is not base64 ({error})") from error
        with open_image(io.BytesIO(data), "mask") as image:
            pixels = np.asarray(image) > 0
        return Bitmap(pixels, round(points[0][0]), round(points[0][1]))
    raise ValueError(
        f"a shape is a {kind} with {len(points)} points; polygon, rectangle, circle and mask can "
        "be imported"
    )


def read_labelme(annotations: Path, rule: PairingRule) -> tuple[list[AnnotatedImage], list[str]]:
    """labelme: one JSON file for each image, with "shapes".

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """

    def read(data: dict) -> tuple[list[Shape], tuple[int, int] | None]:
        shapes = [Shape(str(s["label"]), _labelme_region(s)) for s in data["shapes"]]
        height, width = data.get("imageHeight"), data.get("imageWidth")
        return shapes, (int(height), int(width)) if height and width else None

    return _per_file(annotations, rule, read)


def read_cityscapes(annotations: Path, rule: PairingRule) -> tuple[list[AnnotatedImage], list[str]]:
    """Cityscapes' polygons: one JSON file for each image, with "objects".

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """

    def read(data: dict) -> tuple[list[Shape], tuple[int, int] | None]:
        shapes = [
            Shape(str(o["label"]), Polygon(_points(o["polygon"]), outline=False))
            for o in data["objects"]
            if not o.get("deleted")
        ]
        return shapes, (int(data["imgHeight"]), int(data["imgWidth"]))

    return _per_file(annotations, rule, read)


def _cvat_region(element: ElementTree.Element) -> Region:
    def numbers(*keys: str) -> list[float]:
        return [float(element.attrib[key]) for key in keys]

    degrees = float(element.get("rotation", 0))
    if element.tag == "polygon":
        return Polygon(_points(p.split(",") for p in element.attrib["points"].split(";")))  # type: ignore[misc]
    if element.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        return box((left, top), (right, bottom), degrees)
    if element.tag == "ellipse":
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        return ellipse((x, y), (radius_x, radius_y), degrees)
    if element.tag == "mask":
        left, top, width, height = (int(n) for n in numbers("left", "top", "width", "height"))
        runs = [int(n) for n in element.attrib["rle"].split(",")]
        return Bitmap(mask_of_runs(runs, height, width), left, top)
    raise ValueError(f"a shape is a {element.tag}; polygon, box, ellipse and mask can be imported")


def read_cvat(annotations: Path, images: Path) -> tuple[list[AnnotatedImage], list[str]]:
    """CVAT: one XML file, exported as "CVAT for images 1.1"; "z_order" decides what covers what.

    Raises:
        FileNotFoundError, ValueError: naming the file and what is wrong with it.
    """
    try:
        with open_file(annotations) as file:
            data = file.read()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:  # as UTF-16
            raise ValueError("it defines entities or is not UTF-8; CVAT writes neither")
        root = ElementTree.fromstring(data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{annotations}: there is no such file") from error
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise ValueError(f"{annotations}: not a readable CVAT file ({error})") from error
    if root.find("track") is not None:
        raise ValueError(f"{annotations}: it holds video tracks; export it as CVAT for images 1.1")
    elements = root.findall("image")
    if not elements:
        raise ValueError(f"{annotations}: there is no <image> in it")
    found = _Images(images)
    found.require([e.get("name", "") for e in elements], annotations)
    annotated = []
    for element in elements:
        image = found.find(element.get("name", ""))
        assert image is not None  # required above
        try:
            shapes = [
                Shape(s.attrib["label"], _cvat_region(s), int(s.get("z_order", 0)))
                for s in element
                if s.tag != "tag"
            ]
            size = int(element.attrib["height"]), int(element.attrib["width"])
        except KeyError as error:
            raise ValueError(f"{annotations}: {image.name}: a shape lacks {error}") from error
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{annotations}: {image.name}: {error}") from error
        annotated.append(AnnotatedImage(image, found.stem(image), shapes, size))
    listed = [e.text or "" for e in root.findall("meta//labels/label/name")]
    used = sorted({shape.name for one in annotated for shape in one.shapes})
    return annotated, list(dict.fromkeys(listed)) or used


def annotation_files(annotations: Path) -> list[Path]:
    """The files that an import reads, for its fingerprint."""
    return list(files_in(annotations, recursive=True)) if annotations.is_dir() else [annotations]
