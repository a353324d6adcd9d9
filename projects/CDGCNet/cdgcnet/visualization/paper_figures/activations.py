"""Predictions and internal features of a trained network for one image.

Shape shorthand: image H x W, feature map h x w at stride 8, C channels, M classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from cdgc import class_map, resize_targets, select_nodes
from cdgcnet.data.augmentation import build_test_augmentations
from cdgcnet.data.image_io import read_image
from cdgcnet.data.label_io import read_sample_labels
from cdgcnet.data.label_spec import LabelSpec
from cdgcnet.engine.predictor import Predictor
from cdgcnet.modeling.predictions import PredictionKind

EASY, HARD_POSITIVE, HARD_NEGATIVE = "easy positive", "hard positive", "hard negative"


@dataclass(frozen=True)
class Activations:
    """One image with everything that the figures show of it.

    Attributes:
        name: stem of the image file.
        image: (H, W, 3) uint8, RGB.
        truth: (H, W) uint8 classes or the ignore label; None if there is no ground truth.
        coarse, refined: (H, W) uint8; equal if the network does not refine.
        coarse_map: (h, w) int64, class of each node by the coarse prediction.
        truth_map: (h, w) int64, class or ignore label at each node's own pixel; or None.
        before, after: (C, h, w) float32, X and X̂ of the paper; ``after`` is None if the network
            does not refine.
        align_corners: how nodes are placed on the image.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    coarse: np.ndarray
    refined: np.ndarray
    coarse_map: Tensor
    truth_map: Tensor | None
    before: Tensor
    after: Tensor | None
    align_corners: bool

    def node_positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates of the centers of the nodes: rows (h,) and columns (w,)."""
        return tuple(  # type: ignore[return-value]
            np.linspace(0, length - 1, count)
            if self.align_corners
            else (np.arange(count) + 0.5) * length / count - 0.5
            for length, count in zip(self.image.shape[:2], self.coarse_map.shape, strict=True)
        )


def sampled_nodes(
    seen: Activations, label: int, num_classes: int, ignore_label: int, easy_ratio: float
) -> dict[str, np.ndarray]:
    """The nodes that training would select for the graph of a class (Eq. 4).

    Args:
        seen: an image with ground truth.
        label: the class.
        num_classes: M.
        ignore_label: nodes with it are omitted.
        easy_ratio: fraction of the easy positives, sampled with a fixed seed.

    Returns:
        "easy positive", "hard positive", "hard negative" -> (n, 2) int, row and column.
    """
    assert seen.truth_map is not None
    nodes = select_nodes(
        seen.coarse_map[None],
        seen.truth_map[None],
        num_classes=num_classes,
        nodes="dynamic",
        easy_ratio=easy_ratio,
        ignore_label=ignore_label,
        generator=torch.Generator().manual_seed(0),
    )
    ends = nodes.counts.sum(dim=1).cumsum(dim=0)
    begin = int(ends[label - 1]) if label else 0
    pixel = nodes.pixel[begin : int(ends[label])]
    width = seen.coarse_map.shape[1]
    places = torch.stack([pixel // width, pixel % width], dim=1)
    coarse = seen.coarse_map.flatten()[pixel] == label
    true = seen.truth_map.flatten()[pixel] == label
    parts = {EASY: coarse & true, HARD_POSITIVE: ~coarse & true, HARD_NEGATIVE: coarse & ~true}
    return {name: places[part].numpy() for name, part in parts.items()}


def hardest_class(seen: Activations, num_classes: int, ignore_label: int) -> int:
    """The class with most hard nodes for its size, preferably one with at least eight easy nodes.

    Raises:
        ValueError: for an image without ground truth.
    """
    if seen.truth_map is None:
        raise ValueError(f"{seen.name}: it takes ground truth to tell which nodes are hard")
    kept = seen.truth_map != ignore_label
    coarse, true = seen.coarse_map[kept], seen.truth_map[kept]

    def score(label: int) -> tuple[bool, bool, float]:
        c, g = coarse == label, true == label
        easy, hard = int((c & g).sum()), int((c ^ g).sum())
        # Adding 20 keeps out classes of only a handful of nodes, however wrong they are.
        return bool(g.any()), easy >= 8, hard / (easy + 20)

    return max(range(num_classes), key=score)


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
