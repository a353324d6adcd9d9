"""From a dataset dict to the model's input: read, check, augment, turn into tensors."""

import copy

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from cdgcnet.data.augmentation import (
    ScaledCrop,
    build_test_augmentations,
    build_train_augmentations,
)
from cdgcnet.data.decode_cache import ArrayCache
from cdgcnet.data.image_io import ImageFile, read_image
from cdgcnet.data.label_io import read_checked_labels


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
        cache: str = "",
    ):
        """
        Args:
            augmentations: applied to image and labels.
            image_format: "RGB" or "BGR".
            num_classes, ignore_label: what the labels may hold.
            is_train: read labels too.
            cache: folder for decoded training images; "" for none.
        """
        # Drawn before the image is decoded: rows below the crop need not be.
        self.crop = None
        if is_train and augmentations and isinstance(augmentations[0], ScaledCrop):
            self.crop, *augmentations = augmentations
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.is_train = is_train
        self.cache = ArrayCache(cache) if cache and is_train else None

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict:
        build = build_train_augmentations if is_train else build_test_augmentations
        return {
            "augmentations": build(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "is_train": is_train,
            "cache": cfg.INPUT.CACHE,
        }

    def _image(self, path: str) -> ImageFile | np.ndarray:
        """Undecoded, or decoded and cached."""
        if self.cache is None:
            return ImageFile(path, self.image_format)
        return self.cache.get(path, self.image_format, lambda: read_image(path, self.image_format))

    def _labels(self, dataset_dict: dict, size: tuple[int, int]) -> np.ndarray:
        path = dataset_dict.get("sem_seg_file_name")
        if path is None:
            raise ValueError(f"{dataset_dict['file_name']}: no labels, cannot train on it")
        lut = dataset_dict.get("sem_seg_lut")

        def decode() -> np.ndarray:
            return read_checked_labels(path, self.num_classes, self.ignore_label, size, lut)

        if self.cache is None:
            return decode()
        # What the check depends on is part of the entry, so that no stored one has to be checked.
        variant = f"{self.num_classes} {self.ignore_label} {size} {lut!r}"
        return self.cache.get(path, variant, decode)

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.copy(dataset_dict)  # one level is all that is changed
        image = self._image(dataset_dict["file_name"])
        size = (image.height, image.width) if isinstance(image, ImageFile) else image.shape[:2]
        dataset_dict["height"], dataset_dict["width"] = size
        labels = self._labels(dataset_dict, size) if self.is_train else None
        if self.crop is not None and labels is not None:
            crop = self.crop.draw(size, labels)
            pixels = image
            if isinstance(image, ImageFile):
                pixels = image.rows(crop.transforms[0].rows_needed)
            inputs = T.AugInput(crop.apply_image(pixels), sem_seg=crop.apply_segmentation(labels))
        else:
            pixels = image.rows(size[0]) if isinstance(image, ImageFile) else image
            inputs = T.AugInput(pixels, sem_seg=labels)
        self.augmentations(inputs)
        chw = np.ascontiguousarray(inputs.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.from_numpy(chw)
        if labels is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return dataset_dict
