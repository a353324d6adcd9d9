"""Annotation files with hostile values: imported as valid labels, or refused by name."""

import json
import random
import sys
from pathlib import Path
from typing import Any

from cases import in_child, refusal
from outcomes import RIGHT, WRONG, Outcome
from PIL import Image

from cdgcnet.cli.main import main
from cdgcnet.data.label_io import read_labels

HOSTILE = (
    *(None, True, "", "x", "é\x1b[2J\n", "../../x", "/etc/passwd", [], {}, [[]], [None], {"a": 1}),
    *(-1, 0, 3, 0.5, 1e9, 1e30, 1e300, 10**20, float("nan"), float("inf")),
    *("P" * 30, "o" * 30, "1" * 5000, [0] * 7, [1e9] * 6, [[1e12, 2], [3, 4], [5, 6]]),
    *([5, 3, 40], [10**12], {"counts": [48], "size": [6, 8]}, {"counts": "P", "size": [6, 8]}),
)
SQUARE = [[1, 1], [5, 1], [5, 4]]
FLAT = [float(x) for point in SQUARE for x in point]
CVAT = """<annotations><meta><task><labels><label><name>a</name></label></labels></task></meta>
<image id="0" name="i.png" width="8" height="6">
<polygon label="a" points="1,1;5,1;5,4" z_order="1"/>
<box label="a" xtl="1" ytl="1" xbr="3" ybr="4"/>
<mask label="a" rle="0,4" left="1" top="1" width="2" height="2"/></image></annotations>"""


def sound(kind: str, rng: random.Random) -> Any:
    """The content of a sound file."""
    runs = {"counts": [8, 30, 10], "size": [6, 8]}
    if kind == "coco-json":
        shape = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0}
        return {
            "images": [{"id": 1, "file_name": "i.png", "height": 6, "width": 8}],
            "annotations": [{**shape, "segmentation": rng.choice(([FLAT], runs))}],
            "categories": [{"id": 7, "name": "a"}],
        }
    if kind == "labelme":
        shapes = [
            {"label": "a", "shape_type": "polygon", "points": SQUARE},
            {"label": "a", "shape_type": "circle", "points": SQUARE[:2]},
            {"label": "a", "shape_type": "mask", "points": SQUARE[:2], "mask": "AAAA"},
        ]
        return {"shapes": shapes[: rng.randrange(1, 4)], "imageHeight": 6, "imageWidth": 8}
    if kind == "cityscapes-json":
        return {"imgHeight": 6, "imgWidth": 8, "objects": [{"label": "a", "polygon": SQUARE}]}
    return CVAT


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with every key or index."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    inner = [place for _, v in items if isinstance(v, (dict, list)) for place in places(v)]
    return [*((value, key) for key, _ in items), *inner]


def mutate(content: Any, rng: random.Random) -> bytes:
    if isinstance(content, str):
        parts = content.split('"')
        for _ in range(rng.choice((1, 1, 3))):
            parts[rng.randrange(1, len(parts), 2)] = str(rng.choice(HOSTILE)).replace('"', "")
        text = '"'.join(parts)
    else:
        content = json.loads(json.dumps(content))
        for _ in range(rng.choice((1, 1, 3))):
            container, key = rng.choice(places(content))
            if rng.random() < 0.2:
                del container[key]
            else:
                container[key] = rng.choice(HOSTILE)
        text = json.dumps(content)
    data = bytearray(text.encode())
    if rng.random() < 0.1:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def case(rng: random.Random, folder: Path) -> Outcome:
    kind = rng.choice(("coco-json", "coco-json", "labelme", "cityscapes-json", "cvat"))
    images, annotations, target = folder / "images", folder / "annotations", folder / "out"
    for place in (images, annotations):
        place.mkdir()
    image = images / ("i_leftImg8bit.png" if kind == "cityscapes-json" else "i.png")
    Image.new("RGB", (8, 6)).save(image)
    name = "i_gtFine_polygons.json" if kind == "cityscapes-json" else "i.json"
    content = sound(kind, rng)
    (annotations / name).write_bytes(mutate(content, rng))
    source = annotations / name if kind in ("coco-json", "cvat") else annotations
    log = folder / "log.txt"

    def work() -> Outcome:
        words = ["--annotations", source, "--images", images, "--output", target, "--workers", "0"]
        code = main(["prepare", "import", kind, *map(str, words)])
        sys.stdout.flush()
        sys.stderr.flush()
        said = log.read_text(errors="replace")
        if code:
            return refusal(ValueError(said[-2500:]), [name, image.name, "classes", "class "])
        for path in target.rglob("*.png"):
            if read_labels(path).shape != (6, 8):
                return Outcome(WRONG, f"{path}: not 6 x 8")
        return Outcome(RIGHT)

    before = {p for p in folder.rglob("*") if target not in p.parents} | {log, target}
    outcome = in_child(work, log)
    outside = {p for p in folder.rglob("*") if target not in p.parents} - before
    if outside:
        return Outcome(WRONG, f"written outside of the target: {sorted(map(str, outside))[:3]}")
    return outcome
