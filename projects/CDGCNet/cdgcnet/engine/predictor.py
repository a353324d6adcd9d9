"""Predicts images, optionally with test-time augmentation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cdgcnet.engine.onnx_predictor import OnnxPredictor
from cdgcnet.utils.image_validation import check_bgr_image
from cdgcnet.utils.progress import progress

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from detectron2.data.catalog import Metadata

    from cdgcnet.modeling.predictions import PredictionKind

# PyTorch and Detectron2 are imported inside the methods that need them: from_onnx does not.


class Predictor:
    """Detectron2's ``DefaultPredictor`` with strict weights, input checks and optional TTA.

    Detectron2's ``DefaultPredictor(cfg)`` works too, but has no TTA, only warns about weights that
    do not fit, and unpickles .pkl files, which runs whatever code they contain: use it for files
    that you trust. With TTA or a sliding window "sem_seg" contains probabilities instead of logits.
    """

    def __init__(self, cfg: CfgNode, tta: bool = False):
        """
        Args:
            cfg: a config of CDGCNet; MODEL.WEIGHTS must be the file of a trained model.
            tta: average over TEST.AUG.{SCALES, FLIP}.

        Raises:
            FileNotFoundError, ValueError: for weights that are missing or do not fit.
        """
        from detectron2.modeling import build_model

        from cdgcnet.checkpoint.class_metadata import class_metadata
        from cdgcnet.checkpoint.strict_checkpointer import StrictCheckpointer, check_weights_path
        from cdgcnet.config.validation import weights_file
        from cdgcnet.data.augmentation import build_test_augmentations
        from cdgcnet.modeling.test_time_augmentation import SemanticSegmentorWithTTA

        if not weights_file(cfg):
            raise ValueError(
                f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}; prediction needs the file of a trained "
                "model"
            )
        check_weights_path(cfg.MODEL.WEIGHTS)
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        self.model.window_progress = partial(progress, desc="windows", unit="window")
        checkpointer = StrictCheckpointer(self.model)
        checkpointer.allow_backbone_only = False
        checkpointer.metadata = class_metadata(cfg)
        checkpoint = checkpointer.load(cfg.MODEL.WEIGHTS)
        bar = partial(progress, desc="scales", unit="scale")
        self.tta = SemanticSegmentorWithTTA(cfg, self.model, bar) if tta else None
        self.augmentation = build_test_augmentations(cfg)[0]
        self.input_format = cfg.INPUT.FORMAT
        self.max_pixels = cfg.INPUT.MAX_PIXELS
        self.metadata = self._class_metadata(checkpoint)

    @staticmethod
    def from_onnx(
        path: str | os.PathLike,
        tta: bool = False,
        threads: int | None = None,
        flush_subnormals: bool = False,
    ) -> OnnxPredictor:
        """A predictor for a file of ``cdgcnet export``; needs neither PyTorch nor Detectron2.

        Args:
            path, tta, threads, flush_subnormals: see :class:`OnnxPredictor`.
        """
        return OnnxPredictor(path, tta, threads, flush_subnormals)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        tta: bool = False,
        device: str | None = None,
        download: bool = False,
    ) -> Predictor:
        """The model of a folder that :meth:`save_pretrained` has written.

        Args:
            name: the folder, or "OWNER/NAME" of a repository on the Hugging Face Hub.
            tta: as in the constructor.
            device: "cpu" or "cuda"; None takes a GPU if there is one.
            download: allow to load a repository from the network.

        Raises:
            FileNotFoundError, ValueError: naming what is missing or wrong.
        """
        import torch

        from cdgcnet import (
            load_cfg,
        )  # which registers the network, unlike the one in config.defaults
        from cdgcnet.engine.sharing import CONFIG, WEIGHTS, find_folder

        folder = find_folder(os.fspath(name), download=download)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        fixed = ["MODEL.WEIGHTS", str(folder / WEIGHTS), "MODEL.DEVICE", device]
        return cls(load_cfg(str(folder / CONFIG), fixed), tta=tta)

    def save_pretrained(
        self, folder: str | os.PathLike, results: str | os.PathLike | None = None
    ) -> None:
        """Write weights, config and a model card to a folder, see docs/sharing.md.

        Args:
            folder: new or empty.
            results: the ``results.json`` of an evaluation of this model, for the card.

        Raises:
            ValueError, OSError: for a folder that holds files, or no scores in ``results``.
        """
        from pathlib import Path

        from cdgcnet.engine.sharing import save_folder
        from cdgcnet.evaluation.html_report.run_data import read_scores

        cfg = self.cfg.clone()
        cfg.defrost()
        if self.metadata is not None:
            from cdgcnet.visualization.colors import class_colors

            cfg.MODEL.CLASS_NAMES = list(self.metadata.stuff_classes)
            cfg.MODEL.CLASS_COLORS = [list(color) for color in class_colors(self.metadata)]
        scores = {} if results is None else read_scores(Path(results), list(cfg.DATASETS.TEST))
        save_folder(Path(folder), cfg, self.model.state_dict(), scores)

    def push_to_hub(
        self,
        name: str,
        results: str | os.PathLike | None = None,
        *,
        private: bool | None = None,
        commit_message: str = "Upload model",
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face Hub.

        Args:
            name: "OWNER/NAME" of a repository, which is created if it does not exist.
            results: as in :meth:`save_pretrained`.
            private: visibility of a new repository; None leaves it to the owner's settings.
            commit_message: of the upload.

        Returns:
            The address of the repository.

        Raises:
            ValueError: without huggingface_hub or a token, or saying what the Hub refused.
        """
        from cdgcnet.engine.sharing import upload_folder

        return upload_folder(
            name,
            lambda folder: self.save_pretrained(folder, results),
            private=private,
            commit_message=commit_message,
        )

    def _class_metadata(self, checkpoint: Mapping[str, Any]) -> Metadata | None:
        """Names and colors of the classes: the config's, the checkpoint's or the test set's.

        Names without colors, as of a dataset that has none, get those of Detectron2.
        """
        from detectron2.data import MetadataCatalog
        from detectron2.data.catalog import Metadata

        from cdgcnet.checkpoint.class_metadata import stored_classes
        from cdgcnet.visualization.colors import class_colors

        names, colors = self.cfg.MODEL.CLASS_NAMES, self.cfg.MODEL.CLASS_COLORS
        if not len(names):
            names, colors = stored_classes(checkpoint)
        if len(names) and len(colors):
            return Metadata(stuff_classes=list(names), stuff_colors=[tuple(c) for c in colors])
        for name in self.cfg.DATASETS.TEST[:1]:
            classes = MetadataCatalog.get(name).get("stuff_classes", [])
            if len(classes) == self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES:
                return MetadataCatalog.get(name)
        if not len(names):
            return None
        metadata = Metadata(stuff_classes=list(names))
        metadata.stuff_colors = class_colors(metadata)
        return metadata

    def _input(self, original_image: np.ndarray) -> dict:
        import torch

        check_bgr_image(original_image)
        image = np.ascontiguousarray(original_image)
        if self.input_format == "RGB":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # a fifth of the time of [:, :, ::-1]
        resized = self.augmentation.get_transform(image).apply_image(image)
        inputs = {
            "image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))),
            "height": image.shape[0],
            "width": image.shape[1],
        }
        if self.tta:
            inputs["original_image"] = image
        return inputs

    def __call__(self, original_image: np.ndarray) -> dict:
        """Predict scores.

        Args:
            original_image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` returns it; any size.

        Returns:
            {"sem_seg": (M, H, W)}.

        Raises:
            TypeError, ValueError: for anything else than such an image, saying how to convert it.
        """
        import torch

        model = self.tta or self.model
        with torch.no_grad():
            return model([self._input(original_image)])[0]

    def labels(self, original_image: np.ndarray) -> np.ndarray:
        """The class of every pixel, (H, W) uint8; see :meth:`__call__`.

        ``CDGCSegmentor`` computes it in bands, without storing (M, H, W) logits.
        """
        from cdgcnet.modeling.predictions import PredictionKind

        return self.label_maps([original_image])[0][PredictionKind.REFINED]

    def label_maps(
        self, original_images: Sequence[np.ndarray], coarse: bool = False
    ) -> list[dict[PredictionKind, np.ndarray]]:
        """Label maps of several images; images of the same size share a forward pass.

        Args:
            original_images: as in :meth:`__call__`.
            coarse: whether to add the prediction before the graph. Test-time augmentation and
                networks without a refinement have none.

        Returns:
            The refined label map of each image, (H, W) uint8, and perhaps the coarse one.
        """
        import torch

        from cdgcnet.modeling.postprocessing import label_map
        from cdgcnet.modeling.predictions import PredictionKind, predict_labels

        inputs = [self._input(image) for image in original_images]
        model = self.tta or self.model
        with torch.no_grad():
            predict_scores = getattr(model, "predict_scores", None)
            if not coarse and callable(predict_scores):
                refined = PredictionKind.REFINED
                return [
                    {refined: label_map(p.scores[refined], p.geometry).cpu().numpy()}
                    for p in predict_scores(inputs)
                ]
            return [
                {kind: labels.cpu().numpy() for kind, labels in p.labels.items()}
                for p in predict_labels(model, inputs)
            ]

    def probabilities(self, original_image: np.ndarray) -> np.ndarray:
        """The probability of every class at every pixel, (M, H, W) float32; see :meth:`__call__`.

        Raises:
            MemoryError: if (M, H, W) values cannot fit.
        """
        scores = self(original_image)["sem_seg"]
        if self.tta is None and getattr(self.model, "slide", None) is None:
            scores = scores.softmax(dim=0)
        return scores.float().cpu().numpy()

    def identity(self) -> dict[str, Any]:
        """Weights and config keys that decide what is predicted."""
        from cdgcnet.config.identity import evaluation_fingerprint

        identity = evaluation_fingerprint(self.cfg, self.model, "", ())
        del identity["dataset"], identity["images"]
        return {**identity, "test-time augmentation": self.tta is not None}
