"""Class maps to measure on: seeded blobs with Zipf-like sizes, and the extremes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch import Tensor

from cdgc import resize_targets


def blob_map(size: int, num_classes: int, present: int = 12, seed: int = 0) -> Tensor:
    """A (size, size) int64 map of smooth blobs; class k of ``present`` covers about 1/k of class 1.

    Like a street scene's labels: a few large classes, many small ones, the others absent.
    """
    rng = np.random.default_rng(seed)
    fields = np.stack(
        [gaussian_filter(rng.standard_normal((size, size)), size / 12) for _ in range(present)]
    )
    fields /= fields.std(axis=(1, 2), keepdims=True)
    share = 1 / np.arange(1, present + 1)
    share /= share.sum()
    bias = np.zeros(present)
    for _ in range(60):  # move each class's level until it has its share
        area = np.bincount((fields + bias[:, None, None]).argmax(0).ravel(), minlength=present)
        bias += 0.3 * np.log(share / np.maximum(area / size**2, 1e-4))
    classes = rng.choice(num_classes, present, replace=False)
    return torch.from_numpy(classes[(fields + bias[:, None, None]).argmax(0)])


def pair_share(class_map: Tensor) -> float:
    """Σ n_m² / N²: the share of all pairs of pixels that share their class."""
    counts = torch.bincount(class_map.flatten()).double()
    return float((counts**2).sum() / class_map.numel() ** 2)


def one_hot_logits(class_map: Tensor, num_classes: int) -> Tensor:
    """Coarse logits (1, M, h, w) whose argmax is the map."""
    return torch.nn.functional.one_hot(class_map, num_classes).permute(2, 0, 1)[None].float()


def smooth_logits(class_map: Tensor, num_classes: int) -> Tensor:
    """Coarse logits (1, M, h, w) like a network's: sure inside a blob, torn at its boundary."""
    hot = torch.nn.functional.one_hot(class_map, num_classes).double().numpy()
    probability = gaussian_filter(hot, sigma=(2, 2, 0)) + 1e-6
    return torch.from_numpy(np.log(probability)).permute(2, 0, 1)[None].float()


def label_maps(file: Path, stride: int = 8, ignore: int = 255) -> tuple[Tensor, Tensor]:
    """A plausible coarse map (h, w) for a label PNG, and its labels (H, W).

    CamVid's 360 x 480 labels are doubled to the dataset's own 720 x 960. The coarse map has the
    labels' classes, moved by one node to the right; ignored pixels take the nearest class.
    """
    with Image.open(file) as image:
        labels = np.array(image)  # raw indices, also of palette images
    if labels.shape == (360, 480):
        labels = labels.repeat(2, axis=0).repeat(2, axis=1)
    nearest = distance_transform_edt(labels == ignore, return_distances=False, return_indices=True)
    filled = torch.from_numpy(labels[tuple(nearest)].astype(np.int64))
    size = tuple(-(-s // stride) for s in labels.shape)
    coarse = resize_targets(filled[None], size, align_corners=True)[0].roll(1, dims=1)
    return coarse, torch.from_numpy(labels.astype(np.int64))
