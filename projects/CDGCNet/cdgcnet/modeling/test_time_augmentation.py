"""Test-time augmentation: scale ratios and left-right flip, averaged as probabilities (Sec. 4.3).

Detectron2's ``DatasetMapperTTA`` has absolute sizes and resizes an image that has already been
resized. Here the ratios multiply the size of the network's input, which is the image's own unless
INPUT.MIN_SIZE_TEST or MAX_SIZE_TEST changes it, and the pixels come from the original image.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor, nn

from cdgcnet.modeling.postprocessing import ResizeGeometry
from cdgcnet.modeling.predictions import LabelPrediction, PredictionKind, ScorePrediction
from cdgcnet.modeling.probability_accumulator import AccumulatorOptions, ProbabilityAccumulator


def _original_image(x: dict) -> np.ndarray:
    """The image before any resize, (H, W, 3)."""
    if "original_image" in x:
        return x["original_image"]
    image, file_name = x["image"], x.get("file_name", "no file name")
    height, width = image.shape[-2:]
    if (x.get("height", height), x.get("width", width)) != (height, width):
        raise ValueError(
            f'test-time augmentation needs the image before any resize: "image" is {height} x '
            f"{width}, the output {x['height']} x {x['width']} (height x width), and there is no "
            f'"original_image" (H, W, 3) in the input ({file_name}). With TEST.AUG.ENABLED True '
            "SemSegMapper adds it"
        )
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


class SemanticSegmentorWithTTA(nn.Module):
    """Wraps a segmentor and returns averaged *probabilities* as "sem_seg".

    Works with any model that follows Detectron2's contract for semantic segmentors. A model that
    has ``predict_scores``, such as ``CDGCSegmentor``, saves it from storing full-size logits.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        progress: Callable[[list[float]], Iterable[float]] = iter,
    ):
        """
        Args:
            cfg: TEST.AUG.{SCALES, FLIP} and TEST.ACCUMULATE.*.
            model: maps a list of dicts to a list of {"sem_seg": (M, H, W) logits}.
            progress: is given the scales of an image and returns them, with a progress bar.
        """
        super().__init__()
        self.progress = progress
        self.model = getattr(model, "module", model)
        self.scales = list(cfg.TEST.AUG.SCALES)
        self.flip = cfg.TEST.AUG.FLIP
        self.accumulate = AccumulatorOptions.from_config(cfg)
        # Detectron2's evaluation loop restores this mode, and with it that of the wrapped model.
        self.training = self.model.training

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Same as :meth:`inference`."""
        return self.inference(batched_inputs)

    def inference(self, batched_inputs: list[dict]) -> list[dict]:
        """Average the softmax over all views.

        Args:
            batched_inputs: dicts with "image" (3, h, w), whose size the scale ratios multiply; with
                "original_image" (H, W, 3) uint8 in the same channel order, from which the views
                are resized, unless "image" has the original size; and optionally with "height"
                and "width" of the output.

        Returns:
            One {"sem_seg": (M, H, W) probabilities} per image.

        Raises:
            ValueError: if there is only a resized image.
            MemoryError: if the (M, H, W) sum cannot fit.
        """
        return [{"sem_seg": total.mean(count)} for total, count in map(self._sum, batched_inputs)]

    def predict_labels(self, batched_inputs: list[dict]) -> list[LabelPrediction]:
        """The most probable class of each pixel, refined only; see :meth:`inference`."""
        return [
            LabelPrediction({PredictionKind.REFINED: self._sum(x)[0].labels()})
            for x in batched_inputs
        ]

    @torch.no_grad()
    def _sum(self, x: dict) -> tuple[ProbabilityAccumulator, int]:
        """Sum of the probabilities over the views of one image, and the number of views."""
        base, image = x["image"].shape[-2:], _original_image(x)
        size = int(x.get("height") or image.shape[0]), int(x.get("width") or image.shape[1])
        total = None
        count = 0
        for view in self._views(image, base):
            views = [view, view.flip(-1)] if self.flip else [view]  # both in one forward pass
            batch = [{"image": v, "height": size[0], "width": size[1]} for v in views]
            for flipped, prediction in enumerate(self._predict_scores(batch, size)):
                scores = prediction.scores[PredictionKind.REFINED]
                if total is None:
                    total = ProbabilityAccumulator(
                        len(scores), size, scores.device, self.accumulate
                    )
                total.add(scores, prediction.geometry, logits=prediction.logits, flip=bool(flipped))
                count += 1
        assert total is not None  # check_cfg does not allow an empty list of scales
        return total, count

    def _views(self, image: np.ndarray, base: tuple[int, int]) -> Iterator[Tensor]:
        """The image (H, W, 3) at each scale of the base size, (3, scale * h, scale * w)."""
        height, width = image.shape[:2]
        for scale in self.progress(self.scales):
            size = max(1, round(base[0] * scale)), max(1, round(base[1] * scale))
            resized = image
            if size != (height, width):
                resized = T.ResizeTransform(height, width, *size).apply_image(image)
            yield torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    def _predict_scores(
        self, batch: list[dict], size: tuple[int, int]
    ) -> Iterator[ScorePrediction]:
        predict_scores = getattr(self.model, "predict_scores", None)
        if callable(predict_scores):
            yield from predict_scores(batch)
            return
        geometry = ResizeGeometry(size, size, size, align_corners=False)  # nothing to resize
        for output in self.model(batch):
            yield ScorePrediction({PredictionKind.REFINED: output["sem_seg"]}, True, geometry)
