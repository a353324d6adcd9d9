"""From a dataset dict to the model's input: read, check, augment, turn into tensors."""

import copy
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from PIL import Image, UnidentifiedImageError

from .augmentation import build_test_augmentations, build_train_augmentations


def read_image(path: str | Path, image_format: str = "RGB") -> np.ndarray:
    """An image as (H, W, 3) uint8, its EXIF orientation applied.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming a file that is no readable image.
    """
    try:
        return np.ascontiguousarray(detection_utils.read_image(str(path), image_format))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such image") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a readable image ({error})") from error


def read_labels(path: str | Path) -> np.ndarray:
    """A label PNG as raw indices (H, W) uint8.

    Palette PNGs give their indices: Detectron2's ``read_image(path, "L")`` would turn them into
    grey values (VOC's 1 becomes 38).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, for a colour image, an unreadable one or values above 255.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            labels = np.asarray(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such label file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: not a readable label image ({error})") from error
    if mode not in ("P", "L", "1", "I", "I;16"):
        raise ValueError(
            f"{path}: expected a label PNG with one index per pixel (greyscale or palette), found "
            f"a colour image of mode {mode}"
        )
    if labels.dtype != np.uint8:
        for value in (int(labels.min()), int(labels.max())) if labels.size else ():
            if not 0 <= value <= 255:
                raise ValueError(f"{path}: label value {value} is outside 0 to 255")
        labels = labels.astype(np.uint8)
    return labels


def check_labels(labels: np.ndarray, num_classes: int, ignore_label: int, path: str | Path) -> None:
    """Refuse label values that are neither a class nor the ignore label.

    Raises:
        ValueError: naming the file, the value and what may be behind it.
    """
    found = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    wrong = [int(v) for v in found if v >= num_classes and v != ignore_label]
    if wrong:
        raise ValueError(
            f"{path}: label value {wrong[0]} is neither a class (0 to {num_classes - 1}, "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}) nor the ignore label {ignore_label}; "
            f"values found: {[int(v) for v in found][:30]}. Is it a palette PNG that was saved as "
            "grey values, or a file of label ids where train ids are expected?"
        )


def read_checked_labels(
    path: str | Path, num_classes: int, ignore_label: int, size: tuple[int, int]
) -> np.ndarray:
    """Labels of a known image size (H, W), every value checked."""
    labels = read_labels(path)
    if labels.shape != tuple(size):
        raise ValueError(
            f"{path}: labels are {labels.shape[0]} x {labels.shape[1]}, but the image is "
            f"{size[0]} x {size[1]} (height x width)"
        )
    check_labels(labels, num_classes, ignore_label, path)
    return labels


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
            labels = read_checked_labels(path, self.num_classes, self.ignore_label, image.shape[:2])
        inputs = T.AugInput(image, sem_seg=labels)
        self.augmentations(inputs)
        chw = np.ascontiguousarray(inputs.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.from_numpy(chw)
        if labels is not None:
            dataset_dict["sem_seg"] = torch.from_numpy(inputs.sem_seg.astype(np.int64))
        return dataset_dict
