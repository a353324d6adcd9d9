"""Test-time augmentation: scale ratios and left-right flip, averaged as probabilities (Sec. 4.3).

Detectron2's ``DatasetMapperTTA`` takes absolute sizes from an image that was already resized;
here ratios are taken from the original image, as the paper's protocol does.
"""

from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor, nn

from cdgcnet.data.augmentation import build_test_augmentations
from cdgcnet.data.image_io import read_image
from cdgcnet.modeling.meta_arch import CDGCSegmentor
from cdgcnet.modeling.postprocessing import ResizeGeometry
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind, ScorePrediction
from cdgcnet.modeling.probability_accumulator import AccumulatorOptions, ProbabilityAccumulator


class SemanticSegmentorWithTTA(nn.Module):
    """Wraps a segmentor; same call contract, but "sem_seg" holds averaged *probabilities*.

    Any model with Detectron2's segmentor contract will do.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            cfg: TEST.AUG.{SCALES, FLIP}, TEST.ACCUMULATE.*, INPUT.{FORMAT, MIN_SIZE_TEST,
                MAX_SIZE_TEST}.
            model: maps a list of dicts to a list of {"sem_seg": (M, H, W) logits}.
        """
        super().__init__()
        self.model = getattr(model, "module", model)
        self.align_corners = False  # of no effect: other models' scores have the output's size
        if isinstance(self.model, CDGCSegmentor):
            self.align_corners = self.model.sem_seg_head.align_corners
        self.scales = list(cfg.TEST.AUG.SCALES)
        self.flip = cfg.TEST.AUG.FLIP
        self.image_format = cfg.INPUT.FORMAT
        self.resize = build_test_augmentations(cfg)[0]
        self.accumulate = AccumulatorOptions.from_config(cfg)
        # Detectron2's evaluation loop restores this mode, and with it the wrapped model's.
        self.training = self.model.training

    def _original(self, x: dict) -> np.ndarray:
        """The image before any resize, (H, W, 3): given, from its file, or "image" itself."""
        if "original_image" in x:
            return x["original_image"]
        if "file_name" in x:
            return read_image(x["file_name"], self.image_format)
        return np.ascontiguousarray(x["image"].permute(1, 2, 0).cpu().numpy())

    def _views(self, image: np.ndarray) -> Iterator[Tensor]:
        """The image at every scale, (3, H, W) each; ratio 1 is the size plain inference sees."""
        height, width = image.shape[:2]
        base = self.resize.get_transform(image)
        base_height = getattr(base, "new_h", height)
        base_width = getattr(base, "new_w", width)
        for scale in self.scales:
            size = max(1, round(base_height * scale)), max(1, round(base_width * scale))
            resized = image
            if size != (height, width):
                resized = T.ResizeTransform(height, width, *size).apply_image(image)
            yield torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As :meth:`inference`."""
        return self.inference(batched_inputs)

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Average the softmax over all views.

        Args:
            batched_inputs: dicts with "original_image" (H, W, 3), "file_name" or "image", and
                optionally "height", "width" of the output.

        Returns:
            One {"sem_seg": (M, H, W) probabilities} per image.

        Raises:
            MemoryError: if the (M, H, W) sum cannot fit.
        """
        return [{"sem_seg": total.mean(count)} for total, count in map(self._sum, batched_inputs)]

    def predict_labels(self, batched_inputs: list[dict]) -> list[LabelPrediction]:
        """The most probable class of every pixel, refined only; as :meth:`inference`."""
        return [
            LabelPrediction({PredictionKind.REFINED: self._sum(x)[0].labels()})
            for x in batched_inputs
        ]

    @torch.no_grad()
    def _sum(self, x: dict) -> tuple[ProbabilityAccumulator, int]:
        """Probabilities summed over the views of one image, and the number of views."""
        image = self._original(x)
        size = (x.get("height") or image.shape[0], x.get("width") or image.shape[1])
        total = None
        count = 0
        for view in self._views(image):
            # An image and its mirror image share a forward.
            batch = [{"image": v, "height": size[0], "width": size[1]} for v in self._mirror(view)]
            for flipped, prediction in enumerate(self._predict(batch, size)):
                scores = prediction.scores[PredictionKind.REFINED]
                if total is None:
                    total = ProbabilityAccumulator(
                        len(scores), size, scores.device, self.accumulate
                    )
                total.add(
                    scores,
                    prediction.sizes,
                    self.align_corners,
                    logits=prediction.logits,
                    flip=bool(flipped),
                )
                count += 1
        assert total is not None  # check_cfg refuses an empty list of scales
        return total, count

    def _mirror(self, view: Tensor) -> list[Tensor]:
        return [view, view.flip(-1)] if self.flip else [view]

    def _predict(self, batch: list[dict], size: tuple[int, int]) -> Iterator[ScorePrediction]:
        if isinstance(self.model, CDGCSegmentor):
            yield from self.model.predict(batch)
            return
        for output in self.model(batch):
            yield ScorePrediction(
                {PredictionKind.REFINED: output["sem_seg"]}, True, ResizeGeometry(size, size, size)
            )
