"""Reads the ground truth next to the image, in the processes of the data loader."""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode

from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.data.label_io import read_instances, read_sample_labels
from cdgcnet.data.label_spec import LabelSpec


def read_ground_truth(
    dataset_dict: dict, size: tuple[int, int], spec: LabelSpec, max_pixels: int = MAX_PIXELS
) -> dict[str, torch.Tensor]:
    """Read what the prediction of one image is compared with.

    Args:
        dataset_dict: with "sem_seg_file_name", and perhaps "sem_seg_lut", "instance_file_name".
        size: (H, W) of the image.
        spec: what the labels may hold.
        max_pixels: height x width at most.

    Returns:
        "ground_truth" (H, W) uint8 and, where the dataset has them, "instance_ids" (H, W) int32;
        empty without labels.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing, broken or of another size.
    """
    labels = read_sample_labels(dataset_dict, spec, size, max_pixels)
    if labels is None:
        return {}
    truth = {"ground_truth": torch.from_numpy(np.array(labels))}
    if "instance_file_name" in dataset_dict:
        instances = read_instances(dataset_dict["instance_file_name"], size)
        truth["instance_ids"] = torch.from_numpy(instances)
    return truth


class EvaluationMapper:
    """A test mapper that reads the ground truth too; a broken file does not end the evaluation.

    For a broken file it returns {"file_name", "unusable": message}.
    """

    def __init__(
        self, mapper: Callable[[dict], dict], spec: LabelSpec, max_pixels: int = MAX_PIXELS
    ):
        """
        Args:
            mapper: returns the model's input with the "height" and "width" of the image file.
            spec: what the labels may hold.
            max_pixels: height x width of a label image at most.
        """
        self.mapper = mapper
        self.spec = spec
        self.max_pixels = max_pixels

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            x = self.mapper(dataset_dict)
            size = (x["height"], x["width"])
            x.update(read_ground_truth(dataset_dict, size, self.spec, self.max_pixels))
        except (ValueError, OSError) as error:
            return {"file_name": dataset_dict["file_name"], "unusable": str(error)}
        return x


def build_evaluation_mapper(cfg: CfgNode) -> EvaluationMapper:
    mapper = SemSegMapper(cfg, is_train=False)
    return EvaluationMapper(mapper, LabelSpec.from_config(cfg), cfg.INPUT.MAX_PIXELS)
