"""Test-time augmentation: scale ratios and left-right flip, averaged as probabilities (Sec. 4.3).

Detectron2's ``DatasetMapperTTA`` takes absolute sizes from an image that was already resized;
here ratios are taken from the original image, as the paper's protocol does.
"""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor, nn

from .augmentation import build_test_augmentations
from .files import read_image


class SemanticSegmentorWithTTA(nn.Module):
    """Wraps a segmentor; same call contract, but "sem_seg" holds averaged *probabilities*.

    Any model with Detectron2's segmentor contract will do.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        """
        Args:
            cfg: TEST.AUG.{SCALES, FLIP}, INPUT.{FORMAT, MIN_SIZE_TEST, MAX_SIZE_TEST}.
            model: maps a list of dicts to a list of {"sem_seg": (M, H, W) logits}.
        """
        super().__init__()
        self.model = getattr(model, "module", model)
        self.scales = list(cfg.TEST.AUG.SCALES)
        self.flip = cfg.TEST.AUG.FLIP
        self.image_format = cfg.INPUT.FORMAT
        self.resize = build_test_augmentations(cfg)[0]
        # Detectron2's evaluation loop restores this mode, and with it the wrapped model's.
        self.training = self.model.training

    def _original(self, x: dict) -> np.ndarray:
        """The image before any resize, (H, W, 3): given, from its file, or "image" itself."""
        if "original_image" in x:
            return x["original_image"]
        if "file_name" in x:
            return read_image(x["file_name"], self.image_format)
        return np.ascontiguousarray(x["image"].permute(1, 2, 0).cpu().numpy())

    def _views(self, image: np.ndarray) -> list[Tensor]:
        """The image at every scale, (3, H, W) each; ratio 1 is the size plain inference sees."""
        height, width = image.shape[:2]
        base = self.resize.get_transform(image)
        base_height = getattr(base, "new_h", height)
        base_width = getattr(base, "new_w", width)
        views = []
        for scale in self.scales:
            size = max(1, round(base_height * scale)), max(1, round(base_width * scale))
            resized = image
            if size != (height, width):
                resized = T.ResizeTransform(height, width, *size).apply_image(image)
            views.append(torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))))
        return views

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Average the softmax over all views.

        Args:
            batched_inputs: dicts with "original_image" (H, W, 3), "file_name" or "image", and
                optionally "height", "width" of the output.

        Returns:
            One {"sem_seg": (M, H, W) probabilities} per image.
        """
        return [self._inference_one(x) for x in batched_inputs]

    @torch.no_grad()
    def _inference_one(self, x: dict) -> dict:
        image = self._original(x)
        size = {
            "height": x.get("height", image.shape[0]),
            "width": x.get("width", image.shape[1]),
        }
        total = None
        views = self._views(image)
        for view in views:
            batch = [{"image": view, **size}]
            if self.flip:
                batch.append({"image": view.flip(-1), **size})
            for flipped, output in enumerate(self.model(batch)):
                probabilities = output["sem_seg"].float().softmax(dim=0)
                if flipped:
                    probabilities = probabilities.flip(-1)
                # In place: one (M, H, W) sum, however many scales there are.
                total = probabilities if total is None else total.add_(probabilities)
        assert total is not None  # check_cfg refuses an empty list of scales
        return {"sem_seg": total.div_(len(views) * (2 if self.flip else 1))}
