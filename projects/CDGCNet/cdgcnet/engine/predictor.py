"""One image in, one prediction out, with or without test-time augmentation."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer, check_weights_path
from cdgcnet.data.augmentation import build_test_augmentations
from cdgcnet.modeling.meta_arch import CDGCSegmentor
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA


class Predictor:
    """Detectron2's ``DefaultPredictor`` with strict weights and optional TTA.

    ``DefaultPredictor(cfg)`` works too; it knows no TTA and only warns about weights that do not
    fit. With TTA or a sliding window "sem_seg" holds probabilities instead of logits.
    """

    def __init__(self, cfg: CfgNode, tta: bool = False):
        """
        Args:
            cfg: a config of CDGCNet; MODEL.WEIGHTS must be the file of a trained model.
            tta: average over TEST.AUG.{SCALES, FLIP}.

        Raises:
            FileNotFoundError, ValueError: for missing weights or weights that do not fit.
        """
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty; prediction needs the file of a trained model")
        check_weights_path(cfg.MODEL.WEIGHTS)
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        checkpointer = StrictCheckpointer(self.model)
        checkpointer.allow_backbone_only = False
        checkpointer.load(cfg.MODEL.WEIGHTS)
        self.tta = SemanticSegmentorWithTTA(cfg, self.model) if tta else None
        self.augmentation = build_test_augmentations(cfg)[0]
        self.input_format = cfg.INPUT.FORMAT
        self.metadata = None
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])

    def _inputs(self, original_image: np.ndarray) -> list[dict]:
        if original_image is None or original_image.ndim != 3 or original_image.shape[2] != 3:
            found = None if original_image is None else original_image.shape
            raise ValueError(f"expected a BGR image (H, W, 3), got {found}")
        image = original_image
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = np.ascontiguousarray(image)
        inputs = {"height": image.shape[0], "width": image.shape[1]}
        if self.tta:
            return [{**inputs, "original_image": image}]
        resized = self.augmentation.get_transform(image).apply_image(image)
        chw = np.ascontiguousarray(resized.transpose(2, 0, 1))
        return [{**inputs, "image": torch.from_numpy(chw)}]

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict:
        """
        Args:
            original_image: (H, W, 3) uint8 in BGR order, as OpenCV reads it; any size.

        Returns:
            {"sem_seg": (M, H, W)}.
        """
        model = self.tta or self.model
        return model(self._inputs(original_image))[0]

    @torch.no_grad()
    def labels(self, original_image: np.ndarray) -> np.ndarray:
        """The class of every pixel, (H, W) uint8; arguments as in :meth:`__call__`.

        A :class:`CDGCSegmentor` makes it in bands, without (M, H, W) logits.
        """
        model = self.tta or self.model
        inputs = self._inputs(original_image)
        if isinstance(model, (CDGCSegmentor, SemanticSegmentorWithTTA)):
            labels = model.predict_labels(inputs)[0].labels[PredictionKind.REFINED]
        else:  # Detectron2's segmentor has no label maps
            labels = model(inputs)[0]["sem_seg"].max(dim=0).indices.to(torch.uint8)
        return labels.cpu().numpy()
