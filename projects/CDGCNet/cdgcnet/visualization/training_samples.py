"""A picture of training samples: image, labels and both together, with a legend."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata

from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import class_colors, color_labels

MAX_LEGEND = 24
_CELL = 2.8  # inches


def draw_grid(
    samples: Sequence[dict],
    image_format: str,
    metadata: Metadata,
    title: str,
    path: Path,
    columns: int | None = None,
) -> None:
    """Image, labels and overlay of each sample, with a legend.

    Args:
        samples: dicts with "file_name", "image" (3, H, W) uint8 and "sem_seg" (H, W).
        image_format: "RGB" or "BGR".
        metadata: gives class names and colors.
        title: of the whole picture.
        path: PNG to write.
        columns: samples in a row; None: 1 for up to 3 samples, 2 for more.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    colors, names = class_colors(metadata), list(metadata.stuff_classes)
    across = min(columns or (1 if len(samples) < 4 else 2), len(samples))
    rows = -(-len(samples) // across)
    aspect = max(s["image"].shape[1] / s["image"].shape[2] for s in samples)
    pixels = np.zeros(256, np.int64)
    for sample in samples:
        pixels += np.bincount(sample["sem_seg"].numpy().ravel(), minlength=256)
    order = np.argsort(-pixels[: len(names)], kind="stable")
    occurring = [int(c) for c in order if pixels[c]]
    handles = [
        Patch(facecolor="#{:02x}{:02x}{:02x}".format(*colors[c]), edgecolor="gray", label=names[c])
        for c in occurring[:MAX_LEGEND]
    ]
    if len(occurring) > MAX_LEGEND:
        handles.append(Patch(alpha=0, label=f"+{len(occurring) - MAX_LEGEND} more"))
    if pixels[len(names) :].any():
        handles.append(Patch(facecolor="white", edgecolor="dimgrey", hatch="////", label="ignored"))
    legend_columns = min(len(handles), 4 * across)
    legend_height = 0.25 * -(-len(handles) // legend_columns)
    figure = Figure(
        figsize=(3 * across * _CELL, rows * (_CELL * aspect + 0.25) + legend_height + 0.5),
        layout="constrained",
        dpi=110,
    )
    FigureCanvasAgg(figure)  # no global pyplot state, no window system
    figure.suptitle(title, fontsize=11, parse_math=False)
    axes = figure.subplots(rows, 3 * across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, sample in enumerate(samples):
        row, column = divmod(i, across)
        image = sample["image"].numpy().transpose(1, 2, 0)
        rgb = np.ascontiguousarray(image[:, :, ::-1] if image_format == "BGR" else image)
        labels = sample["sem_seg"].numpy().astype(np.uint8)
        colored = color_labels(labels, colors)
        overlay = cv2.addWeighted(rgb, 0.45, colored, 0.55, 0)
        for offset, picture in enumerate((rgb, colored, overlay)):
            axes[row, 3 * column + offset].imshow(picture, interpolation="nearest")
        ignored = 100 * (labels >= len(names)).mean()
        axes[row, 3 * column].set_title(
            f"{Path(sample['file_name']).name}, {ignored:.1f} % ignored",
            loc="left",
            fontsize=8,
            parse_math=False,  # names may hold "$"
        )
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=legend_columns,
        fontsize=8,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_write(path) as tmp_path:
        figure.savefig(tmp_path)
