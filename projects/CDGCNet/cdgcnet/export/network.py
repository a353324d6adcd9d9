"""A whole network at inference as one function from an image to logits and labels, for export.

Shape shorthand: B images of H x W pixels, M classes, h x w feature map.
"""

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdgcnet.export.graph import ExportableGraph
from cdgcnet.modeling.cdgc_head import CDGCNetHead
from cdgcnet.modeling.context_modules import PyramidPooling


class ExportableNetwork(nn.Module):
    """Preprocessing, network and resize to the image's size.

    The network sees the image at its own size: a resize before it (INPUT.MIN_SIZE_TEST), windows
    and test-time augmentation are left to the caller.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        input_format: str,
        *,
        coarse: bool = False,
    ):
        """
        Args:
            model: a segmentor in evaluation mode whose head is a ``CDGCNetHead``; its parameters
                are shared, not copied.
            input_format: "BGR" or "RGB", the order of channels the network was trained with.
            coarse: also return the logits before the refinement.

        Raises:
            ValueError: for a model that cannot be exported, saying why.
        """
        super().__init__()
        head = getattr(model, "sem_seg_head", None)
        if not isinstance(head, CDGCNetHead):
            raise ValueError(
                f"cannot export a {type(model).__name__} with a {type(head).__name__}; expected "
                "MODEL.SEM_SEG_HEAD.NAME CDGCNetHead"
            )
        if model.training:
            raise ValueError("the model is in training mode; call model.eval() before exporting it")
        backbone = cast(nn.Module, model.backbone)
        divisor = cast(int, backbone.size_divisibility)
        if divisor > 1:
            raise ValueError(
                f"cannot export a backbone that pads images to multiples of {divisor} pixels; "
                "expected one that takes every size, such as build_dilated_resnet_backbone"
            )
        if coarse and head.graph is None and head.context_module is None:
            raise ValueError(
                "the network has no coarse logits, because nothing refines them "
                "(MODEL.CDGC.ENABLED is False)"
            )
        self.backbone = backbone
        self.head = copy.copy(head)
        self.head._modules = dict(head._modules)  # so that replacing a module leaves the model be
        if head.graph is not None:
            self.head.graph = None
        if isinstance(head.context_module, PyramidPooling):
            self.head.context_module = ExportablePyramidPooling(head.context_module)
        self.class_graph = None if head.graph is None else ExportableGraph(head.graph)
        self.coarse = coarse
        self.reverse_channels = input_format == "RGB"
        self.register_buffer("mean", cast(Tensor, model.pixel_mean).view(-1, 1, 1))
        self.register_buffer("std", cast(Tensor, model.pixel_std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (B, H, W, 3) uint8 in BGR order.

        Returns:
            Labels (B, H, W) uint8, logits (B, M, H, W) and, if requested, coarse logits
            (B, M, H, W).
        """
        pixels = image.permute(0, 3, 1, 2).float()
        if self.reverse_channels:
            pixels = pixels.flip(1)
        features = self.backbone((pixels - self.mean) / self.std)
        head = self.head
        x = head.reduce(head.context(features[head.main_feature]))
        coarse = refined = head.coarse_predictor(x)
        if self.class_graph is not None:
            refined = head.refined_logits(x, self.class_graph(x, coarse))
        elif head.context_module is not None:
            refined = head.refined_logits(x, head.context_module(x, coarse))
        outputs = [refined, coarse] if self.coarse else [refined]
        size = image.shape[1:3]
        logits = [
            F.interpolate(y, size, mode="bilinear", align_corners=head.align_corners)
            for y in outputs
        ]
        return logits[0].argmax(1).to(torch.uint8), *logits


class ExportablePyramidPooling(nn.Module):
    """:class:`PyramidPooling` with its adaptive pooling as a matrix per axis.

    ONNX has no adaptive pooling for sizes that are unknown at export.
    """

    def __init__(self, module: PyramidPooling):
        super().__init__()
        self.bins, self.stages, self.project = module.bins, module.stages, module.project

    def forward(self, x: Tensor, coarse_logits: Tensor | None = None) -> Tensor:
        """Refined features (B, C, h, w); the coarse logits are not used."""
        parts = [x]
        for bins, stage in zip(self.bins, self.stages, strict=True):
            rows, columns = (_pooling_matrix(x.shape[axis], bins, x) for axis in (2, 3))
            pooled = stage(rows @ x @ columns.t())
            parts.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True))
        return self.project(torch.cat(parts, dim=1))


def _pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """Averages over the bins of ``F.adaptive_avg_pool2d`` along one axis, (bins, size)."""
    pixel = torch.arange(size, device=like.device)
    b = torch.arange(bins, device=like.device)[:, None]
    inside = (pixel >= b * size // bins) & (pixel < ((b + 1) * size + bins - 1) // bins)
    weight = inside.to(like.dtype)
    return weight / weight.sum(1, keepdim=True)
