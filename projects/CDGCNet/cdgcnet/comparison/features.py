"""Feature maps and labels of images, as a frozen backbone sees them.

Shape shorthand: h x w feature map at stride s; the network's input is (h-1)·s+1 by (w-1)·s+1
pixels, so that with aligned corners node i lies exactly on pixel i·s. Labels are kept at every
second pixel of that input: (h-1)·s/2+1 by (w-1)·s/2+1.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_sample_labels
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.modeling.precision import DTYPES
from cdgcnet.utils.digests import digest

LABEL_STEP = 2  # pixels of the network's input per label


def grid_size(height: int, width: int, shorter_side: int, stride: int) -> tuple[int, int]:
    """Nodes (h, w) of an image whose shorter side is resized to about ``shorter_side`` pixels."""
    least = round(shorter_side / stride) + 1
    ratio = ((least - 1) * stride + 1) / min(height, width)

    def nodes(side: int) -> int:
        return max(least, round((side * ratio - 1) / stride) + 1)

    return nodes(height), nodes(width)


def label_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Size of the kept labels of a grid of h x w nodes."""
    per_node = stride // LABEL_STEP
    return (height - 1) * per_node + 1, (width - 1) * per_node + 1


def weights_digest(module: nn.Module) -> str:
    """Of the names and numbers of a module's state, wherever they were loaded from."""
    parts = []
    for name, value in sorted(module.state_dict().items()):
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        parts += [name.encode(), raw.tobytes()]
    return digest(parts)


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Detectron2's convolutions with their batch norms multiplied in, in place: one third faster.

    Norms of other kinds stay as they are.
    """
    for conv in module.modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            mean, var = norm.running_mean, norm.running_var
            assert isinstance(mean, Tensor) and isinstance(var, Tensor)
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, var, norm.eps, norm.weight, norm.bias
            )
            setattr(conv, "norm", None)  # noqa: B010  an attribute of Detectron2's Conv2d
    return module


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class FeatureExtractor:
    """The backbone of a config with its weights, applied to image files.

    Attributes:
        weights: digest of the backbone's weights.
        channels, stride: of the feature map, the last of MODEL.SEM_SEG_HEAD.IN_FEATURES.
        shorter_side: of the network's input, in pixels.
        precision: "fp32" or "bf16", of the backbone.
        backbone: in evaluation mode, its batch norms folded into its convolutions.
    """

    def __init__(self, cfg: CfgNode, shorter_side: int, precision: str):
        """
        Args:
            cfg: MODEL.BACKBONE, RESNETS, WEIGHTS, PIXEL_{MEAN,STD}, DEVICE, and INPUT.FORMAT.
            shorter_side: of the network's input, in pixels.
            precision: "fp32" or "bf16", of the backbone.

        Raises:
            ValueError: if the weights do not fit, or the stride is not a multiple of 4.
        """
        model = build_model(cfg)
        with _quiet("fvcore.common.checkpoint"):  # it would list the head's keys as missing
            StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        self.weights = weights_digest(model.backbone)
        self.backbone = fold_batch_norms(model.backbone.eval())
        self.backbone.to(DTYPES[precision]).to(memory_format=torch.channels_last)
        self.feature = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES[-1]
        shape = model.backbone.output_shape()[self.feature]
        self.channels, self.stride = shape.channels, shape.stride
        if self.stride % (2 * LABEL_STEP):
            raise ValueError(
                f"feature {self.feature!r} has stride {self.stride}; expected a multiple of "
                f"{2 * LABEL_STEP}"
            )
        self.shorter_side = shorter_side
        self.precision = precision
        self.format = cfg.INPUT.FORMAT
        self.mean, self.std = model.pixel_mean, model.pixel_std
        self.labels = LabelSpec.from_config(cfg)
        self.max_pixels = cfg.INPUT.MAX_PIXELS

    def describe(self) -> dict[str, Any]:
        """Everything besides weights and files that decides what :meth:`__call__` gives."""
        return {
            "feature": self.feature,
            "stride": self.stride,
            "shorter_side": self.shorter_side,
            "precision": self.precision,
            "format": self.format,
            "pixel_mean": self.mean.flatten().tolist(),
            "pixel_std": self.std.flatten().tolist(),
            "label_step": LABEL_STEP,
            "num_classes": self.labels.num_classes,
            "ignore_label": self.labels.ignore_label,
        }

    @torch.inference_mode()
    def __call__(self, entry: dict) -> tuple[Tensor, np.ndarray]:
        """Features (h·w, channels) float32, and labels uint8 (:func:`label_size`).

        Args:
            entry: a Detectron2 dict with "file_name" and "sem_seg_file_name".

        Raises:
            FileNotFoundError, ValueError: naming a file that is missing, broken or has other
                values than classes, or an image whose features are not finite.
        """
        image = read_image(entry["file_name"], self.format, self.max_pixels)
        height, width = image.shape[:2]
        labels = read_sample_labels(entry, self.labels, (height, width), self.max_pixels)
        assert labels is not None  # sets without labels are refused
        nodes = grid_size(height, width, self.shorter_side, self.stride)
        size = ((n - 1) * self.stride + 1 for n in nodes)
        resize = T.ResizeTransform(height, width, *size)
        pixels = torch.from_numpy(np.array(resize.apply_image(image)))
        x = pixels.permute(2, 0, 1)[None].to(self.mean.device, torch.float32)
        x = ((x - self.mean) / self.std).to(
            DTYPES[self.precision], memory_format=torch.channels_last
        )
        features = self.backbone(x)[self.feature][0]  # (channels, h, w)
        if tuple(features.shape[1:]) != nodes:
            raise ValueError(
                f"{entry['file_name']}: the backbone gives {tuple(features.shape[1:])} nodes for "
                f"{tuple(x.shape[2:])} pixels; expected {nodes} at stride {self.stride}"
            )
        rows = features.flatten(1).t().float()
        if not torch.isfinite(rows).all():
            raise ValueError(
                f"{entry['file_name']}: the backbone's features are not finite (NaN or infinity); "
                "check MODEL.WEIGHTS and MODEL.PIXEL_STD, or use --precision fp32"
            )
        kept = resize.apply_segmentation(labels)[::LABEL_STEP, ::LABEL_STEP]
        return rows.cpu(), np.ascontiguousarray(kept)


@dataclass(frozen=True)
class Projection:
    """Features (N, D) -> (N, C): centered, projected on C principal components, scaled.

    One common scale gives the kept channels a mean variance of 1 and leaves their ratios alone.

    Attributes:
        mean: (D,).
        basis: (D, C), with the scale.
        explained: the share of the variance that the C channels keep.
    """

    mean: np.ndarray
    basis: np.ndarray
    explained: float

    @classmethod
    def fit(cls, parts: Iterable[Tensor], channels: int) -> "Projection":
        """Principal components of the rows of all parts, (N, D) each.

        Args:
            parts: feature rows; read once.
            channels: C; D or more keeps all D.
        """
        count, total, products = 0, torch.zeros(()), torch.zeros(())
        for rows in parts:
            count += len(rows)
            total = total + rows.double().sum(0)
            products = products + (rows.t() @ rows).double()
        mean = total / count
        variance, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        variance, vectors = variance.flip(0).clamp(min=0)[:channels], vectors.flip(1)[:, :channels]
        everything = (products.diagonal() / count - mean**2).sum()
        scale = variance.mean().clamp(min=1e-12).rsqrt()
        return cls(
            mean.float().numpy(),
            (vectors * scale).float().contiguous().numpy(),
            float(variance.sum() / everything),
        )

    def __call__(self, rows: Tensor) -> np.ndarray:
        """(N, D) float32 -> (N, C) float16."""
        projected = (rows - torch.from_numpy(self.mean)) @ torch.from_numpy(self.basis)
        return projected.half().numpy()
