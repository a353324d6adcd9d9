"""Ground truth for the evaluator, read beside the image in the loader's processes."""

from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode

from cdgcnet.data.dataset_mapper import SemSegMapper
from cdgcnet.data.label_io import read_checked_labels
from cdgcnet.evaluation.cityscapes_metrics import read_instances


def read_ground_truth(
    dataset_dict: dict, size: tuple[int, int], num_classes: int, ignore_label: int
) -> dict[str, torch.Tensor]:
    """What a prediction of one image is compared with.

    Args:
        dataset_dict: with "sem_seg_file_name", and perhaps "sem_seg_lut", "instance_file_name".
        size: (H, W) of the image.
        num_classes, ignore_label: what the labels may hold.

    Returns:
        "ground_truth" (H, W) uint8 and, where the set has them, "instance_ids" (H, W) int32;
        empty without labels.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing, broken or of another size.
    """
    path = dataset_dict.get("sem_seg_file_name")
    if path is None:
        return {}
    lut = dataset_dict.get("sem_seg_lut")
    labels = read_checked_labels(path, num_classes, ignore_label, size, lut)
    truth = {"ground_truth": torch.from_numpy(np.array(labels))}
    if "instance_file_name" in dataset_dict:
        instances = read_instances(dataset_dict["instance_file_name"], size)
        truth["instance_ids"] = torch.from_numpy(instances)
    return truth


class EvaluationMapper:
    """A test mapper that reads the ground truth too, and lets no broken file end the evaluation.

    For a broken file it gives {"file_name", "unusable": message}.
    """

    def __init__(self, mapper: Callable[[dict], dict], num_classes: int, ignore_label: int):
        """
        Args:
            mapper: gives the model's input, and "height" and "width" of the image file.
            num_classes, ignore_label: what labels may hold.
        """
        self.mapper = mapper
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            x = self.mapper(dataset_dict)
            size = (x["height"], x["width"])
            x.update(read_ground_truth(dataset_dict, size, self.num_classes, self.ignore_label))
        except (ValueError, OSError) as error:
            return {"file_name": dataset_dict["file_name"], "unusable": str(error)}
        return x


def build_evaluation_mapper(cfg: CfgNode) -> EvaluationMapper:
    head = cfg.MODEL.SEM_SEG_HEAD
    return EvaluationMapper(SemSegMapper(cfg, is_train=False), head.NUM_CLASSES, head.IGNORE_VALUE)
