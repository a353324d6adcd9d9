"""The native meta-architecture: like Detectron2's ``SemanticSegmentor``, but it knows sizes.

It carries coarse logits and node counts to the evaluator in the pass that also makes the refined
prediction, never lets batch padding become a node, goes from stride-8 logits straight to label
maps, and predicts large images in windows.
"""

from collections import defaultdict
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from cdgc import resize_targets, valid_nodes
from cdgcnet.modeling.cdgc_head import CDGCNetHead
from cdgcnet.modeling.graph import log_node_shares
from cdgcnet.modeling.postprocessing import ResizeGeometry, full_size_logits, label_map
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind, ScorePrediction
from cdgcnet.modeling.probability_accumulator import AccumulatorOptions, ProbabilityAccumulator
from cdgcnet.modeling.sliding_window import SlidingWindow

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@META_ARCH_REGISTRY.register()
class CDGCSegmentor(nn.Module):
    """Backbone and :class:`CDGCNetHead`, with Detectron2's input and output format."""

    sem_seg_head: CDGCNetHead
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: CDGCNetHead,
        pixel_mean: list[float],
        pixel_std: list[float],
        slide: SlidingWindow | None = None,
        precision: str = "fp32",
        channels_last: bool = False,
        accumulate: AccumulatorOptions | None = None,
    ):
        """
        Args:
            backbone: its features feed the head.
            sem_seg_head: has ``layers()`` and ``losses()``.
            pixel_mean, pixel_std: per channel, 0-255.
            slide: windows that inference goes through; None for whole images.
            precision: of the network in inference, "fp32", "bf16" or "fp16" (autocast). Scores
                are float32 from the head on.
            channels_last: keep convolutions and activations in this layout.
            accumulate: where windows are summed up; None for the model's device in float32.
        """
        super().__init__()
        if not isinstance(sem_seg_head, CDGCNetHead):
            raise ValueError(
                "MODEL.META_ARCHITECTURE CDGCSegmentor needs MODEL.SEM_SEG_HEAD.NAME "
                f"CDGCNetHead, got {type(sem_seg_head).__name__}"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.slide = slide
        self.precision = precision
        self.channels_last = channels_last
        self.accumulate = accumulate or AccumulatorOptions()
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "slide": SlidingWindow.from_config(cfg),
            "precision": cfg.TEST.PRECISION,
            "channels_last": cfg.MODEL.CHANNELS_LAST,
            "accumulate": AccumulatorOptions.from_config(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def _preprocess(self, batched_inputs: list[dict]) -> ImageList:
        images = [x["image"].to(self.device, torch.float32) for x in batched_inputs]
        channels = len(self.pixel_mean)
        for x, image in zip(batched_inputs, images, strict=True):
            if image.dim() != 3 or image.shape[0] != channels or 0 in image.shape:
                raise ValueError(
                    f'"image" must be ({channels}, H, W), got {tuple(image.shape)} '
                    f"({x.get('file_name', 'no file name')})"
                )
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _in_layout(self, images: Tensor) -> Tensor:
        if self.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else what :meth:`inference` returns.

        Args:
            batched_inputs: one dict per image with "image" (3, H, W), in training "sem_seg"
                (H, W) too, and optionally "height", "width" of the output.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if any("sem_seg" not in x for x in batched_inputs):
            raise ValueError('training needs ground truth: no "sem_seg" in the batch')
        images = self._preprocess(batched_inputs)
        for x in batched_inputs:
            if x["sem_seg"].shape != x["image"].shape[-2:]:
                raise ValueError(
                    f'"sem_seg" {tuple(x["sem_seg"].shape)} and "image" '
                    f"{tuple(x['image'].shape)} differ in size "
                    f"({x.get('file_name', 'no file name')})"
                )
        head = self.sem_seg_head
        targets = ImageList.from_tensors(
            [x["sem_seg"].to(self.device) for x in batched_inputs],
            self.backbone.size_divisibility,
            head.ignore_value,
        ).tensor
        features = self.backbone(self._in_layout(images.tensor))
        output = head.layers(features, targets, self._valid(images, features))
        log_node_shares(output.nodes)
        return head.losses(output, targets)

    def _valid(self, images: ImageList, features: dict[str, Tensor]) -> Tensor | None:
        padded = images.tensor.shape[-2:]
        if all(tuple(size) == tuple(padded) for size in images.image_sizes):
            return None
        size = features[self.sem_seg_head.main_feature].shape[-2:]
        align_corners = self.sem_seg_head.align_corners
        return valid_nodes(images.image_sizes, padded, size, align_corners).to(self.device)

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Predict scores; images of unequal size never share a padded tensor.

        Args:
            batched_inputs: as in :meth:`forward`.

        Returns:
            One {"sem_seg": (M, H, W)} per image: refined logits, or probabilities if a sliding
            window is set.

        Raises:
            ValueError: on a malformed image.
            MemoryError: if (M, H, W) scores cannot fit.
        """
        return [{"sem_seg": self._full_size_scores(p)} for p in self.predict(batched_inputs)]

    def predict_labels(self, batched_inputs: list[dict]) -> list[LabelPrediction]:
        """Predict label maps of every kind in one pass, without (M, H, W) scores.

        Args:
            batched_inputs: as in :meth:`forward`; they may hold "oracle_sem_seg" (H, W), the
                ground truth at the size of the output.

        Returns:
            One prediction per image: refined labels; with a graph also coarse labels, node counts
            if the graph is class-wise, and oracle labels where the ground truth was given.

        Raises:
            ValueError: on a malformed image.
        """
        align_corners = self.sem_seg_head.align_corners
        return [
            LabelPrediction(
                {kind: label_map(s, p.sizes, align_corners) for kind, s in p.scores.items()},
                p.node_counts,
            )
            for p in self.predict(batched_inputs, diagnose=True)
        ]

    def predict(self, batched_inputs: list[dict], diagnose: bool = False) -> list[ScorePrediction]:
        """Predictions that are not resized yet; arguments as in :meth:`predict_labels`.

        Args:
            diagnose: keep the coarse prediction too, and the oracle where ground truth is given.
        """
        if self.training:
            raise ValueError("the model is in training mode; call model.eval() before predicting")
        by_size = defaultdict(list)
        for i, x in enumerate(batched_inputs):
            by_size[(tuple(x["image"].shape[-2:]), "oracle_sem_seg" in x)].append(i)
        predictions: dict[int, ScorePrediction] = {}
        for indices in by_size.values():
            inputs = [batched_inputs[i] for i in indices]
            images = self._preprocess(inputs)
            size = images.image_sizes[0]
            labels = None
            if diagnose and "oracle_sem_seg" in inputs[0]:
                labels = torch.cat([self._oracle(x["oracle_sem_seg"], size) for x in inputs])
            if self.slide is None or self.slide.covers(size):
                found = self._whole(images, labels, diagnose)
            else:
                found = self._windows(images, labels, diagnose, self.slide)
            for i, prediction in zip(indices, found, strict=True):
                x = batched_inputs[i]
                output = (x.get("height", size[0]), x.get("width", size[1]))
                predictions[i] = replace(prediction, sizes=prediction.sizes._replace(output=output))
        return [predictions[i] for i in range(len(batched_inputs))]

    def _oracle(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels of the output (H, W) -> (1, h, w) of the network's input."""
        labels = labels.to(self.device)[None]
        return resize_targets(labels, size, self.sem_seg_head.align_corners)

    def _whole(
        self, images: ImageList, labels: Tensor | None, diagnose: bool
    ) -> list[ScorePrediction]:
        """Predict images of one size in one forward; labels (B, H, W)."""
        head = self.sem_seg_head
        tensor = self._in_layout(images.tensor)
        if labels is not None:
            padding = (0, tensor.shape[3] - labels.shape[2], 0, tensor.shape[2] - labels.shape[1])
            labels = F.pad(labels, padding, value=head.ignore_value)
        dtype = _AUTOCAST[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32"):
            features = self.backbone(tensor)
            out = head.layers(features, valid=self._valid(images, features), oracle=labels)
        kept: dict[PredictionKind, Tensor | None] = {PredictionKind.REFINED: out.refined}
        if diagnose:
            kept |= {PredictionKind.COARSE: out.coarse, PredictionKind.ORACLE: out.oracle}
        counts = None
        if out.nodes is not None and head.graph is not None and head.graph.scope == "class":
            counts = out.nodes.counts
        size = images.image_sizes[0]
        return [
            ScorePrediction(
                {name: scores[row].float() for name, scores in kept.items() if scores is not None},
                True,
                ResizeGeometry((tensor.shape[2], tensor.shape[3]), size, size),
                None if counts is None else counts[:, row],
            )
            for row in range(len(tensor))
        ]

    def _windows(
        self, images: ImageList, labels: Tensor | None, diagnose: bool, slide: SlidingWindow
    ) -> list[ScorePrediction]:
        """Predict images of one size window by window; labels (B, H, W)."""
        size = images.image_sizes[0]
        align_corners = self.sem_seg_head.align_corners
        sums: list[dict[PredictionKind, ProbabilityAccumulator]] = [{} for _ in images.image_sizes]
        nodes: list[Tensor | None] = [None] * len(sums)
        for rows, columns in slide.windows(size):
            window = ImageList.from_tensors(
                list(images.tensor[:, :, rows, columns]), self.backbone.size_divisibility
            )
            part = None if labels is None else labels[:, rows, columns]
            for i, prediction in enumerate(self._whole(window, part, diagnose)):
                for name, scores in prediction.scores.items():
                    if name not in sums[i]:
                        sums[i][name] = ProbabilityAccumulator(
                            len(scores), size, self.device, self.accumulate
                        )
                    corner = (rows.start, columns.start)
                    sums[i][name].add(scores, prediction.sizes, align_corners, corner=corner)
                counts, before = prediction.node_counts, nodes[i]
                nodes[i] = counts if before is None or counts is None else before + counts
        held = slide.counts(size)
        return [
            ScorePrediction(
                {name: s.mean(held.to(s.total.device)) for name, s in by_name.items()},
                False,
                ResizeGeometry(size, size, size),
                count,
            )
            for by_name, count in zip(sums, nodes, strict=True)
        ]

    def _full_size_scores(self, prediction: ScorePrediction) -> Tensor:
        align_corners = self.sem_seg_head.align_corners
        scores, sizes = prediction.scores[PredictionKind.REFINED], prediction.sizes
        if self.slide is None:
            return full_size_logits(scores, sizes, align_corners)
        total = ProbabilityAccumulator(len(scores), sizes.output, self.device, self.accumulate)
        total.add(scores, sizes, align_corners, logits=prediction.logits)
        return total.total
