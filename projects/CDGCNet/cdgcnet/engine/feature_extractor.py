"""Runs a trained network on one image and keeps what the paper's figures show of it.

Shape shorthand: image H x W, feature map h x w at stride 8, C channels, M classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from cdgc import class_map, resize_targets
from cdgcnet.data.augmentation import build_test_augmentations
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_sample_labels
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.engine.predictor import Predictor
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.visualization.paper_figures.activations import Activations


class FeatureExtractor:
    """Runs a trained network and returns its internal features along with its predictions."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: with MODEL.WEIGHTS.

        Raises:
            ValueError: for a meta-architecture other than CDGCSegmentor.
            FileNotFoundError, ValueError: for weights that are missing or do not fit.
        """
        if cfg.MODEL.META_ARCHITECTURE != "CDGCSegmentor":
            raise ValueError(
                f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}; the figures need "
                "CDGCSegmentor. Its checkpoints fit both; add --opts "
                "MODEL.META_ARCHITECTURE CDGCSegmentor"
            )
        self.cfg = cfg
        self.model: Any = Predictor(cfg).model
        self.augmentation = build_test_augmentations(cfg)[0]

    @property
    def num_classes(self) -> int:
        return int(self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)

    @property
    def ignore_label(self) -> int:
        return int(self.cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)

    @torch.no_grad()
    def __call__(self, dataset_dict: dict) -> Activations:
        """
        Args:
            dataset_dict: "file_name" and, with ground truth, "sem_seg_file_name".

        Raises:
            FileNotFoundError, ValueError: for files that cannot be used.
        """
        image_format = self.cfg.INPUT.FORMAT
        image = read_image(dataset_dict["file_name"], image_format, self.cfg.INPUT.MAX_PIXELS)
        height, width = image.shape[:2]
        spec = LabelSpec.from_config(self.cfg)
        max_pixels = self.cfg.INPUT.MAX_PIXELS
        truth = read_sample_labels(dataset_dict, spec, (height, width), max_pixels)
        resized = self.augmentation.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        inputs = {"image": tensor, "height": height, "width": width}
        (prediction,) = self.model.predict_labels([inputs])
        before, after, coarse = self._features(tensor)
        coarse_map = class_map(coarse)[0].cpu()
        align_corners = self.model.sem_seg_head.align_corners
        truth_map = None
        if truth is not None:
            size = (int(coarse_map.shape[0]), int(coarse_map.shape[1]))
            targets = torch.from_numpy(np.array(truth))[None].long()
            truth_map = resize_targets(targets, size, align_corners)[0]
        labels = {kind: x.cpu().numpy() for kind, x in prediction.labels.items()}
        refined = labels[PredictionKind.REFINED]
        return Activations(
            name=Path(dataset_dict["file_name"]).stem.removesuffix("_leftImg8bit"),
            image=np.ascontiguousarray(image if image_format == "RGB" else image[:, :, ::-1]),
            truth=truth,
            coarse=labels.get(PredictionKind.COARSE, refined),
            refined=refined,
            coarse_map=coarse_map,
            truth_map=truth_map,
            before=before[0].float().cpu(),
            after=None if after is None else after[0].float().cpu(),
            align_corners=align_corners,
        )

    def _features(self, image: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """X, X̂ (1, C, h, w) and coarse logits (1, M, h, w) of an image (3, H, W)."""
        model, head = self.model, self.model.sem_seg_head
        x = (image.to(model.device, torch.float32) - model.pixel_mean) / model.pixel_std
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            kept.append(output)

        hook = head.reduce.register_forward_hook(keep)
        try:
            output = head.predict_logits(model.backbone(x[None]))
        finally:
            hook.remove()
        (before,) = kept
        coarse = output.refined if output.coarse is None else output.coarse
        after = None
        if head.graph is not None:
            after = head.graph.propagate(before, head.graph.select(coarse))
        elif head.context_module is not None:
            after = head.context_module(before, coarse)
        return before, after, coarse
