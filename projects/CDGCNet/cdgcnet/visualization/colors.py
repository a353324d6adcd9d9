"""Colors of classes, and label maps and overlays in them.

Shape shorthand: label maps (H, W), images (H, W, 3) uint8 RGB.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from detectron2.data import Metadata

PADDING_COLOR = (0, 0, 0)  # of palette entries that are not classes
IGNORED = (225, 225, 225)  # black is a class of VOC
# What the refinement changed: blue and vermilion, which color-blind readers can tell apart.
FIXED, BROKEN = (0, 114, 178), (213, 94, 0)
_OVERLAY_PIXELS = 2_000_000  # an overlay is meant for a screen
_PLACING_SIDE = 400  # pixels, for finding the places of names


def class_colors(metadata: "Metadata") -> list[tuple[int, int, int]]:
    """One RGB color per class: those of the dataset, or Detectron2's color map if it has none."""
    colors = getattr(metadata, "stuff_colors", None)
    if not colors:
        from detectron2.utils.colormap import colormap

        colors = np.resize(colormap(rgb=True), (len(metadata.stuff_classes), 3))
    return [(int(r), int(g), int(b)) for r, g, b in colors]


def unit_color(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """A color with values from 0 to 255 in matplotlib's range."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def palette_of(colors: Sequence[Sequence[int]]) -> list[int]:
    """A 256-color PNG palette; values that are not classes are black."""
    palette = [channel for color in colors for channel in color]
    return palette + list(PADDING_COLOR) * (256 - len(colors))


def label_image(labels: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """A palette image whose pixel values are the labels (H, W) themselves."""
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette_of(colors))
    return image


def color_map(
    labels: np.ndarray, colors: Sequence[Sequence[int]], striped: bool = False
) -> np.ndarray:
    """Labels (H, W) in the colors of their classes, (H, W, 3) uint8.

    Args:
        labels: classes; all other values are drawn in light gray.
        colors: RGB color of each class.
        striped: draw all other values as stripes instead.
    """
    table = np.full((256, 3), IGNORED, np.uint8)
    table[: len(colors)] = colors
    labels = labels.astype(np.uint8)
    rgb = cv2.merge([cv2.LUT(labels, np.ascontiguousarray(channel)) for channel in table.T])
    if striped:
        height, width = labels.shape
        diagonals = np.add.outer(np.arange(height), np.arange(width))
        stripes = np.where(diagonals // max(2, min(height, width) // 32) % 2, 255, 90)
        other = labels >= len(colors)
        rgb[other] = stripes[other][:, None]
    return rgb


def fit_screen(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale an image (H, W, 3) and its labels (H, W) down to about two megapixels, if larger."""
    scale = (_OVERLAY_PIXELS / labels.size) ** 0.5
    if scale >= 1:
        return image, labels
    size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
    # Halving (an odd last row is left out) and then interpolating takes a third of the time of
    # averaging over areas of any size.
    while scale <= 0.5 and min(image.shape[:2]) > 1:
        half = (image.shape[1] // 2, image.shape[0] // 2)
        even = image[: 2 * half[1], : 2 * half[0]]
        image, scale = cv2.resize(even, half, interpolation=cv2.INTER_AREA), 2 * scale
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST),
    )


def overlay(
    image: np.ndarray, labels: np.ndarray, metadata: "Metadata", alpha: float = 0.5
) -> np.ndarray:
    """Class colors blended over an image, with outlines and names of the largest regions.

    Images of more than about two megapixels are scaled down, so that drawing stays fast.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8; values that are not classes leave the image as it is.
        metadata: provides class names and colors.
        alpha: weight of the colors.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    image, labels = fit_screen(image, labels)
    colors = class_colors(metadata)
    image = np.ascontiguousarray(image)
    drawn = cv2.addWeighted(image, 1 - alpha, color_map(labels, colors), alpha, 0)
    other = labels >= len(colors)
    drawn[other] = image[other]
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    drawn[edges] = 255
    return _with_names(drawn, labels, metadata.stuff_classes)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font with Latin, Greek and Cyrillic letters that is installed with matplotlib."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def _with_names(picture: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The picture with the name of each class in its largest region, if it fits there."""
    # A small copy of the labels is enough to find the places.
    step = max(1, max(labels.shape) // _PLACING_SIDE)
    small = labels[::step, ::step]
    font = _font(max(10, min(32, picture.shape[0] // 34)))
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    for label in np.unique(small).tolist():
        if label >= len(names):
            continue
        mask = (small == label).astype(np.uint8)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        left, top, width, height = stats[largest, :4].tolist()
        text_left, text_top, text_right, text_bottom = font.getbbox(names[label], stroke_width=1)
        text_width = text_right - text_left
        if text_width > width * step or 2 * (text_bottom - text_top) > height * step:
            continue
        # The point of the region farthest from its outline; padding makes the border one too.
        inside = np.pad(regions[top : top + height, left : left + width] == largest, 1)
        distance = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 3)
        row, column = divmod(int(distance.argmax()), distance.shape[1])
        margin = text_width / 2 + 2
        x = max(margin, min((left + column) * step, picture.shape[1] - margin))
        place = (x, (top + row) * step)
        draw.text(
            place, names[label], "white", font, anchor="mm", stroke_width=1, stroke_fill="black"
        )
    return np.array(drawn)
