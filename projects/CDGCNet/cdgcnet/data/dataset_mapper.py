"""Turns a dataset dict into the model's input: reads, checks, augments, makes tensors."""

import copy

import cv2
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
from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.data.image_io import ImageFile, read_image
from cdgcnet.data.label_io import read_sample_labels
from cdgcnet.data.label_spec import LabelSpec


class SemSegMapper:
    """Dataset dict -> {"image": (3, H, W) uint8, "sem_seg": (H, W), "height", "width", …}.

    "sem_seg" is there in training only; ``EvaluationMapper`` reads the ground truth. It is int64,
    as other meta architectures of Detectron2 expect, or uint8 for ``CDGCSegmentor``, which converts
    labels on its own device: what loader workers send is then a third as large. "height" and
    "width" are those of the image file, the size that predictions are made for. At test time
    "original_image" (H, W, 3) uint8 is there too if it is asked for and "image" was resized.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        label_spec: LabelSpec,
        is_train: bool,
        cache: str = "",
        max_pixels: int = MAX_PIXELS,
        keep_original: bool = False,
        uint8_labels: bool = False,
    ):
        """
        Args:
            augmentations: applied to image and labels.
            image_format: "RGB" or "BGR".
            label_spec: what the labels may hold.
            is_train: read labels too.
            cache: folder for decoded training images; "" for none.
            max_pixels: height x width of an image at most.
            keep_original: hand over the image before it is resized, for test-time augmentation.
            uint8_labels: leave "sem_seg" in uint8 instead of int64.
        """
        # Drawn before the image is decoded: rows below the crop need not be.
        self.crop = None
        if is_train and augmentations and isinstance(augmentations[0], ScaledCrop):
            self.crop, *augmentations = augmentations
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.label_spec = label_spec
        self.is_train = is_train
        self.cache = ArrayCache(cache) if cache and is_train else None
        self.max_pixels = max_pixels
        self.keep_original = keep_original and not is_train
        self.label_dtype = np.uint8 if uint8_labels else np.int64

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> dict:
        build = build_train_augmentations if is_train else build_test_augmentations
        return {
            "augmentations": build(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "label_spec": LabelSpec.from_config(cfg),
            "is_train": is_train,
            "cache": cfg.INPUT.CACHE,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "keep_original": cfg.TEST.AUG.ENABLED,
            "uint8_labels": cfg.MODEL.META_ARCHITECTURE == "CDGCSegmentor",
        }

    def _image(self, path: str) -> ImageFile | np.ndarray:
        """Not decoded yet, or decoded and cached."""
        if self.cache is None:
            return ImageFile(path, self.image_format, self.max_pixels)
        return self.cache.get(
            path,
            self.image_format,
            lambda: read_image(path, self.image_format, self.max_pixels),
        )

    def _labels(self, dataset_dict: dict, size: tuple[int, int]) -> np.ndarray:
        path = dataset_dict.get("sem_seg_file_name")
        if path is None:
            raise ValueError(
                f"{dataset_dict['file_name']}: the image has no labels, so it cannot be trained on"
            )

        def decode() -> np.ndarray:
            labels = read_sample_labels(dataset_dict, self.label_spec, size, self.max_pixels)
            assert labels is not None  # there is a path
            return labels

        if self.cache is None:
            return decode()
        # An entry belongs to what was checked, so a stored one need not be checked again.
        return self.cache.get(path, f"{self.label_spec.for_sample(dataset_dict)} {size}", decode)

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.copy(dataset_dict)  # only the top level is changed
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
        original = inputs.image
        self.augmentations(inputs)
        if self.keep_original and inputs.image is not original:
            dataset_dict["original_image"] = original
        dataset_dict["image"] = torch.from_numpy(_channels_first(inputs.image))
        if labels is not None:
            # A copy even in uint8: a crop is a view of the whole label map, or of the cache's file.
            dataset_dict["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(self.label_dtype))
        return dataset_dict


def _channels_first(image: np.ndarray) -> np.ndarray:
    """A copy of (H, W, 3) as (3, H, W): OpenCV is several times as fast as NumPy."""
    if image.strides[1] < 0:  # a flip is only a view so far
        image = cv2.flip(image[:, ::-1], 1)
    channels = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
    cv2.split(image, list(channels))
    return channels
