"""A picture of training samples: image, labels, and both together."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata

from cdgcnet.visualization.colors import class_colors, color_map
from cdgcnet.visualization.grid import LegendEntry, PanelGrid, class_legend, tallest_aspect

_GRAY = (172, 172, 172)  # the mean of the stripes


def draw_grid(
    samples: Sequence[dict],
    image_format: str,
    metadata: Metadata,
    title: str,
    path: Path,
    columns: int | None = None,
) -> None:
    """Draw image, labels and overlay of each sample; ignored pixels are striped.

    Args:
        samples: dicts with "file_name", "image" (3, H, W) uint8 and "sem_seg" (H, W).
        image_format: "RGB" or "BGR".
        metadata: provides class names and colors.
        title: of the whole picture.
        path: PNG to write.
        columns: samples per row; None for 1 with up to 3 samples, otherwise 2.
    """
    colors = class_colors(metadata)
    across = min(columns or (1 if len(samples) < 4 else 2), len(samples))
    images = [sample["image"].numpy().transpose(1, 2, 0) for sample in samples]
    if image_format == "BGR":
        images = [image[:, :, ::-1] for image in images]
    labels = [sample["sem_seg"].numpy().astype(np.uint8) for sample in samples]
    pixels = np.sum([np.bincount(x.ravel(), minlength=256) for x in labels], axis=0)
    frequent_first = np.argsort(-pixels, kind="stable")
    legend = class_legend([int(c) for c in frequent_first if pixels[c]], metadata)
    if pixels[len(colors) :].any():
        legend.append(LegendEntry("ignored", _GRAY, hatched=True))
    grid = PanelGrid(
        -(-len(samples) // across),
        3 * across,
        tallest_aspect(images),
        legend=legend,
        title=title,
        row_titles=True,
        width=8.4 * across,
    )
    for i, (sample, image, label_map) in enumerate(zip(samples, images, labels, strict=True)):
        row, column = divmod(i, across)
        image = np.ascontiguousarray(image)
        colored = color_map(label_map, colors, striped=True)
        ignored = 100 * (label_map >= len(colors)).mean()
        panels = {
            Path(sample["file_name"]).name: image,
            f"labels, {ignored:.1f} % ignored": colored,
            "both": cv2.addWeighted(image, 0.45, colored, 0.55, 0),
        }
        for offset, (name, picture) in enumerate(panels.items()):
            grid.show(row, 3 * column + offset, picture, name)
    grid.save(path)
