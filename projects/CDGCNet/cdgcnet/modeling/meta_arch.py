"""The meta-architecture: Detectron2's ``SemanticSegmentor`` with exact sizes and label maps.

It returns coarse labels and node counts from the same pass that makes the refined prediction,
keeps batch padding out of the graph, computes label maps directly from stride-8 logits, and
predicts large images in windows.

Shape shorthand: B images, M classes, h x w scores, H x W pixels.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.meta_arch.semantic_seg import build_sem_seg_head
from detectron2.structures import ImageList
from torch import Tensor, nn

from cdgc import resize_targets, valid_nodes
from cdgcnet.modeling.cdgc_head import log_node_fractions
from cdgcnet.modeling.image_validation import check_image_tensor
from cdgcnet.modeling.postprocessing import ResizeGeometry, full_size_logits, label_map
from cdgcnet.modeling.precision import autocast_to, training_precision
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind, ScorePrediction
from cdgcnet.modeling.probability_accumulator import AccumulatorOptions, ProbabilityAccumulator
from cdgcnet.modeling.refinement_head import RefinementHead, check_head
from cdgcnet.modeling.sliding_window import SlidingWindow, Window


def _build_backbone(cfg: CfgNode) -> Backbone:
    """
    Raises:
        ValueError: naming MODEL.BACKBONE.NAME where its builder fails with a bare assertion, as
            many of Detectron2's do.
    """
    try:
        return build_backbone(cfg)
    except AssertionError as error:
        reason = str(error) or "an assertion without a message"
        raise ValueError(
            f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}, which cannot be built from this "
            f"config: {reason}"
        ) from error


@META_ARCH_REGISTRY.register()
class CDGCSegmentor(nn.Module):
    """A backbone and a :class:`RefinementHead`, with Detectron2's input and output format."""

    sem_seg_head: RefinementHead
    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        pixel_mean: list[float],
        pixel_std: list[float],
        slide: SlidingWindow | None = None,
        precision: str = "fp32",
        training_precision: str = "fp32",
        channels_last: bool = False,
        accumulate: AccumulatorOptions | None = None,
    ):
        """
        Args:
            backbone: provides the features for the head.
            sem_seg_head: a :class:`RefinementHead`, such as ``CDGCNetHead``.
            pixel_mean, pixel_std: per channel, for pixel values from 0 to 255.
            slide: windows for inference; None to predict whole images.
            precision: of the network in inference. "bf16" or "fp16" enable autocast; "fp32" leaves
                the precision to the caller, so that a surrounding ``torch.autocast`` takes effect.
                The scores that leave the head are always float32.
            training_precision: the same in training. "fp16" needs scaled gradients.
            channels_last: memory layout of convolutions and activations.
            accumulate: how windows are accumulated; None for float32 on the model's device.

        Raises:
            ValueError: if the head lacks a member of :class:`RefinementHead`.
        """
        super().__init__()
        check_head(sem_seg_head)
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head  # type: ignore[assignment]
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.slide = slide
        self.precision = precision
        self.training_precision = training_precision
        self.channels_last = channels_last
        self.accumulate = accumulate or AccumulatorOptions()
        # Is given the windows of an image and returns them; may show a progress bar.
        self.window_progress: Callable[[list[Window]], Iterable[Window]] = iter
        if channels_last:
            self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = _build_backbone(cfg)
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "slide": SlidingWindow.from_config(cfg),
            "precision": cfg.TEST.PRECISION,
            "training_precision": training_precision(cfg),
            "channels_last": cfg.MODEL.CHANNELS_LAST,
            "accumulate": AccumulatorOptions.from_config(cfg),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """The losses in training, otherwise the same as :meth:`inference`.

        Args:
            batched_inputs: one dict per image with "image" (3, H, W), values from 0 to 255; in
                training also "sem_seg" (H, W) of any integer type; optionally "height" and "width"
                of the output.
        """
        if not self.training:
            return self.inference(batched_inputs)
        for x in batched_inputs:
            if "sem_seg" not in x:
                raise ValueError('training needs ground truth: no "sem_seg" in the batch')
            if x["sem_seg"].shape != x["image"].shape[-2:]:
                raise ValueError(
                    f'"sem_seg" {tuple(x["sem_seg"].shape)} and "image" '
                    f"{tuple(x['image'].shape)} differ in size "
                    f"({x.get('file_name', 'no file name')})"
                )
        images = self._preprocess(batched_inputs)
        head = self.sem_seg_head
        targets = ImageList.from_tensors(
            [x["sem_seg"].to(self.device).long() for x in batched_inputs],
            self.backbone.size_divisibility,
            head.ignore_value,
        ).tensor
        with autocast_to(self.training_precision, self.device):
            features = self.backbone(self._in_layout(images.tensor))
            output = head.predict_logits(features, targets, self._valid(images, features))
            log_node_fractions(output.nodes)
            return head.losses(output, targets)

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Predict scores; images of different sizes never share a padded tensor.

        Args:
            batched_inputs: as in :meth:`forward`.

        Returns:
            One {"sem_seg": (M, H, W)} per image: refined logits, or probabilities if a sliding
            window is set.

        Raises:
            TypeError, ValueError: for a malformed image.
            MemoryError: if (M, H, W) scores cannot fit.
        """
        return [{"sem_seg": self._full_size_scores(p)} for p in self.predict_scores(batched_inputs)]

    def predict_labels(self, batched_inputs: list[dict]) -> list[LabelPrediction]:
        """Predict label maps of every kind in a single pass, without storing (M, H, W) scores.

        Args:
            batched_inputs: as in :meth:`forward`, optionally with "oracle_sem_seg" (H, W), the
                ground truth at the size of the output.

        Returns:
            One prediction per image: refined labels; coarse labels if the head refines; node
            counts with a class-wise graph, and also oracle labels if there is ground truth.

        Raises:
            TypeError, ValueError: for a malformed image.
        """
        return [
            LabelPrediction(
                {kind: label_map(scores, p.geometry) for kind, scores in p.scores.items()},
                p.node_counts,
            )
            for p in self.predict_scores(batched_inputs, all_kinds=True)
        ]

    def predict_scores(
        self, batched_inputs: list[dict], all_kinds: bool = False
    ) -> list[ScorePrediction]:
        """Predict scores without resizing them to the output.

        Args:
            batched_inputs: as in :meth:`predict_labels`.
            all_kinds: whether to keep the coarse and oracle scores along with the refined ones.
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
            oracle = None
            if all_kinds and "oracle_sem_seg" in inputs[0]:
                oracle = torch.cat([self._oracle(x["oracle_sem_seg"], size) for x in inputs])
            if self.slide is None or self.slide.covers(size):
                found = self._predict_whole(images, oracle, all_kinds)
            else:
                found = self._predict_windows(images, oracle, all_kinds, self.slide)
            for i, prediction in zip(indices, found, strict=True):
                x = batched_inputs[i]
                output = (x.get("height", size[0]), x.get("width", size[1]))
                geometry = prediction.geometry._replace(output=output)
                predictions[i] = replace(prediction, geometry=geometry)
        return [predictions[i] for i in range(len(batched_inputs))]

    def _preprocess(self, batched_inputs: list[dict]) -> ImageList:
        for x in batched_inputs:
            check_image_tensor(x["image"], len(self.pixel_mean), x.get("file_name", "no file name"))
        images = [x["image"].to(self.device, torch.float32) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _in_layout(self, images: Tensor) -> Tensor:
        if self.channels_last:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def _valid(self, images: ImageList, features: dict[str, Tensor]) -> Tensor | None:
        """Which nodes are not batch padding, (B, h, w); None if all of them are valid."""
        padded = images.tensor.shape[-2:]
        if all(tuple(size) == tuple(padded) for size in images.image_sizes):
            return None
        size = features[self.sem_seg_head.main_feature].shape[-2:]
        align_corners = self.sem_seg_head.align_corners
        return valid_nodes(images.image_sizes, padded, size, align_corners).to(self.device)

    def _oracle(self, labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Labels at the size of the output (H, W) -> (1, h, w) at that of the network's input."""
        labels = labels.to(self.device)[None]
        return resize_targets(labels, size, self.sem_seg_head.align_corners)

    def _predict_whole(
        self, images: ImageList, oracle: Tensor | None, all_kinds: bool
    ) -> list[ScorePrediction]:
        """Predict images of the same size in one forward pass; oracle labels (B, H, W)."""
        head = self.sem_seg_head
        tensor = self._in_layout(images.tensor)
        if oracle is not None:
            padding = (0, tensor.shape[3] - oracle.shape[2], 0, tensor.shape[2] - oracle.shape[1])
            oracle = F.pad(oracle, padding, value=head.ignore_value)
        with autocast_to(self.precision, self.device):
            features = self.backbone(tensor)
            out = head.predict_logits(features, valid=self._valid(images, features), oracle=oracle)
        logits = {PredictionKind.REFINED: out.refined}
        if all_kinds and out.coarse is not None:
            logits[PredictionKind.COARSE] = out.coarse
        if all_kinds and out.oracle is not None:
            logits[PredictionKind.ORACLE] = out.oracle
        size = images.image_sizes[0]
        padded = (tensor.shape[2], tensor.shape[3])
        geometry = ResizeGeometry(padded, size, size, head.align_corners)
        return [
            ScorePrediction(
                {kind: scores[i].float() for kind, scores in logits.items()},
                True,
                geometry,
                None if out.nodes is None else out.nodes.counts[:, i],
            )
            for i in range(len(tensor))
        ]

    def _predict_windows(
        self, images: ImageList, oracle: Tensor | None, all_kinds: bool, slide: SlidingWindow
    ) -> list[ScorePrediction]:
        """Predict images of the same size window by window; oracle labels (B, H, W)."""
        size = images.image_sizes[0]
        sums: list[dict[PredictionKind, ProbabilityAccumulator]] = [{} for _ in images.image_sizes]
        nodes: list[Tensor | None] = [None] * len(sums)
        for rows, columns in self.window_progress(list(slide.windows(size))):
            window = ImageList.from_tensors(
                list(images.tensor[:, :, rows, columns]), self.backbone.size_divisibility
            )
            part = None if oracle is None else oracle[:, rows, columns]
            for i, prediction in enumerate(self._predict_whole(window, part, all_kinds)):
                for kind, scores in prediction.scores.items():
                    if kind not in sums[i]:
                        sums[i][kind] = ProbabilityAccumulator(
                            len(scores), size, self.device, self.accumulate
                        )
                    corner = (rows.start, columns.start)
                    sums[i][kind].add(scores, prediction.geometry, corner=corner)
                counts, previous = prediction.node_counts, nodes[i]
                nodes[i] = counts if previous is None or counts is None else previous + counts
        covering = slide.counts(size)
        geometry = ResizeGeometry(size, size, size, self.sem_seg_head.align_corners)
        return [
            ScorePrediction(
                {kind: s.mean(covering.to(s.total.device)) for kind, s in by_kind.items()},
                False,
                geometry,
                count,
            )
            for by_kind, count in zip(sums, nodes, strict=True)
        ]

    def _full_size_scores(self, prediction: ScorePrediction) -> Tensor:
        scores, geometry = prediction.scores[PredictionKind.REFINED], prediction.geometry
        if self.slide is None:
            return full_size_logits(scores, geometry)
        total = ProbabilityAccumulator(len(scores), geometry.output, self.device, self.accumulate)
        total.add(scores, geometry, logits=prediction.logits)
        return total.total
