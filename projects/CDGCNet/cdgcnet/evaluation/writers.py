"""Predicted label maps as files: palette PNGs, and Detectron2's run-length encoded JSON."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from pycocotools import mask as mask_util

from cdgcnet.evaluation.inference import arrays_of, label_prediction_of
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.visualization.encoding import write_label_png


def label_paths(folder: Path, file_names: Sequence[str]) -> dict[str, Path]:
    """The path of each image's label PNG.

    Below ``folder`` the files are arranged as the images are below their common folder.

    Raises:
        ValueError: naming two images that would get the same file.
    """
    # Without "..": no name leads out of the folder.
    files = {name: os.path.abspath(name) for name in file_names}
    common = os.path.commonpath([os.path.dirname(file) for file in files.values()])
    taken: dict[Path, str] = {}
    for name, file in files.items():
        path = (folder / os.path.relpath(file, common)).with_suffix(".png")
        if path in taken:
            raise ValueError(
                f"TEST.SAVE_LABELS: {taken[path]} and {name} would both be written to {path}; "
                "rename one of them"
            )
        taken[path] = name
    return {name: path for path, name in taken.items()}


def rle_entries(labels: np.ndarray, file_name: str, metadata: Metadata) -> list[dict]:
    """One entry per class of a label map, as Detectron2's ``SemSegEvaluator`` dumps them."""
    own_ids = {
        contiguous: own
        for own, contiguous in (metadata.get("stuff_dataset_id_to_contiguous_id") or {}).items()
    }
    entries = []
    for label in np.unique(labels).tolist():
        rle = mask_util.encode(np.asfortranarray(labels == label, dtype=np.uint8))
        rle["counts"] = rle["counts"].decode("ascii")
        entries.append(
            {
                "file_name": file_name,
                "category_id": own_ids.get(label, label),
                "segmentation": rle,
            }
        )
    return entries


class LabelMapWriter(DatasetEvaluator):
    """Writes the refined label map of every image as a palette PNG; it computes no scores."""

    def __init__(
        self, dataset_name: str, file_names: Sequence[str], num_classes: int, folder: Path
    ):
        """
        Args:
            dataset_name: registered name; gives the colors.
            file_names: of all images of the dataset.
            num_classes: M of the model.
            folder: of the PNGs, see :func:`label_paths`.
        """
        self.metadata = MetadataCatalog.get(dataset_name)
        self.num_classes = num_classes
        self.paths = label_paths(folder, file_names)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            labels = arrays_of(label_prediction_of(output, self.num_classes))
            path = self.paths[x["file_name"]]
            write_label_png(path, labels[PredictionKind.REFINED], self.metadata)
