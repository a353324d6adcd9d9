"""From a dataset dict to the model's input: read, check, augment, turn into tensors."""

import copy

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .augmentation import build_test_augmentations, build_train_augmentations
from .files import read_checked_labels, read_image


class SemSegMapper:
    """Dataset dict -> {"image": (3, H, W) uint8, "sem_seg": (H, W) int64, "height", "width", …}.

    "sem_seg" is there in training only; the evaluator reads its own ground truth. "height" and
    "width" are those of the image file, the size predictions are made for.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_classes: int,
        ignore_label: int,
        is_train: bool,
    ):
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.is_train = is_train

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict:
        build = build_train_augmentations if is_train else build_test_augmentations
        return {
            "augmentations": build(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "is_train": is_train,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.copy(dataset_dict)  # one level is all that is changed
        image = read_image(dataset_dict["file_name"], self.image_format)
        dataset_dict["height"], dataset_dict["width"] = image.shape[:2]
        labels = None
        if self.is_train:
            path = dataset_dict.get("sem_seg_file_name")
            if path is None:
                raise ValueError(f"{dataset_dict['file_name']}: no labels, cannot train on it")
            labels = read_checked_labels(
                path,
                self.num_classes,
                self.ignore_label,
                image.shape[:2],
                dataset_dict.get("sem_seg_lut"),
            )
        inputs = T.AugInput(image, sem_seg=labels)
        self.augmentations(inputs)
        chw = np.ascontiguousarray(inputs.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.from_numpy(chw)
        if labels is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return dataset_dict
