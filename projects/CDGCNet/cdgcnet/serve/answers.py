"""From an uploaded file to the body of an answer; runs in the thread of the network.

Shape shorthand: images (H, W, 3) uint8, label maps (H, W) uint8.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np

from cdgcnet.data.image_io import decode_image
from cdgcnet.visualization.colors import class_colors, color_map, overlay
from cdgcnet.visualization.encoding import data_url, jpeg, label_png

if TYPE_CHECKING:
    from detectron2.data import Metadata
# Name in ?format= -> media type. "comparison" is what the page shows.
FORMATS = {
    "labels": "image/png",
    "overlay": "image/jpeg",
    "json": "application/json",
    "comparison": "application/json",
}
_QUALITY = 90  # of JPEGs


class LabelModel(Protocol):
    """What the server needs of a network; ``cdgcnet.Predictor`` documents it."""

    def label_maps(
        self, original_images: Sequence[np.ndarray], coarse: bool = False
    ) -> Sequence[Mapping[Any, np.ndarray]]: ...


class Answer(NamedTuple):
    body: bytes
    media_type: str


def answer(
    model: LabelModel, metadata: "Metadata", upload: bytes, format: str, max_pixels: int
) -> Answer:
    """Predict an uploaded image.

    Args:
        model: the network.
        metadata: provides class names and colors.
        upload: contents of an image file.
        format: one of :data:`FORMATS`.
        max_pixels: height x width at most.

    Raises:
        ValueError: for an upload that is not a readable image.
        MemoryError: if the prediction cannot fit.
    """
    image = decode_image(upload, "the uploaded file", "BGR", max_pixels)
    (maps,) = model.label_maps([image], coarse=format in ("json", "comparison"))
    refined, coarse = maps["refined"], maps.get("coarse")
    rgb = image[:, :, ::-1]
    if format == "labels":
        body = label_png(refined, metadata)
    elif format == "overlay":
        body = jpeg(overlay(rgb, refined, metadata), _QUALITY)
    else:
        content = summary(refined, coarse, metadata)
        if format == "comparison":
            content["pictures"] = pictures(rgb, refined, coarse, metadata)
        body = json.dumps(content).encode()
    return Answer(body, FORMATS[format])


def summary(refined: np.ndarray, coarse: np.ndarray | None, metadata: "Metadata") -> dict[str, Any]:
    """Size, the classes that occur and their share of the pixels, and the share that changed.

    Returns:
        "changed" and "coarse_share" are None for a network without a coarse prediction.
    """
    counts = np.bincount(refined.ravel(), minlength=256)
    before = None if coarse is None else np.bincount(coarse.ravel(), minlength=256)
    names, colors = metadata.stuff_classes, class_colors(metadata)
    occurring = counts if before is None else counts + before
    classes = [
        {
            "id": i,
            "name": name,
            "color": list(colors[i]),
            "share": counts[i] / refined.size,
            "coarse_share": None if before is None else before[i] / refined.size,
        }
        for i, name in enumerate(names)
        if occurring[i]
    ]
    classes.sort(key=lambda entry: -entry["share"])
    return {
        "height": refined.shape[0],
        "width": refined.shape[1],
        "classes": classes,
        "changed": None if coarse is None else float((refined != coarse).mean()),
    }


def pictures(
    rgb: np.ndarray, refined: np.ndarray, coarse: np.ndarray | None, metadata: "Metadata"
) -> dict[str, str]:
    """Pictures of the same size as data URLs: image, refined, and perhaps coarse and changed."""
    drawn = {"refined": overlay(rgb, refined, metadata)}
    height, width = drawn["refined"].shape[:2]
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    drawn = {"image": small, **drawn}
    if coarse is not None:
        drawn["coarse"] = overlay(rgb, coarse, metadata)
        drawn["changed"] = changed_pixels(small, refined, coarse, metadata)
    return {
        name: data_url(jpeg(picture, _QUALITY), "image/jpeg") for name, picture in drawn.items()
    }


def changed_pixels(
    rgb: np.ndarray, refined: np.ndarray, coarse: np.ndarray, metadata: "Metadata"
) -> np.ndarray:
    """The image in gray, and the changed pixels in the colors of their new classes."""
    size = (rgb.shape[1], rgb.shape[0])
    refined, coarse = (
        cv2.resize(x, size, interpolation=cv2.INTER_NEAREST) for x in (refined, coarse)
    )
    gray = 110 + 0.55 * rgb.mean(axis=2, keepdims=True)
    picture = np.repeat(gray.clip(0, 255).astype(np.uint8), 3, axis=2)
    changed = refined != coarse
    picture[changed] = color_map(refined, class_colors(metadata))[changed]
    return picture
