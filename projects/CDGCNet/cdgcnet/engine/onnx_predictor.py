"""Predicts with an exported ONNX file; needs neither PyTorch nor Detectron2.

Shape shorthand: M classes, H x W pixels of the original image, h x w of the network's input.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.engine.export_metadata import METADATA_KEY, ExportMetadata
from cdgcnet.utils.image_size import shortest_edge_size
from cdgcnet.utils.image_validation import check_bgr_image
from cdgcnet.utils.progress import progress


def open_session(
    path: str | os.PathLike, threads: int | None = None, flush_subnormals: bool = False
) -> tuple[Any, ExportMetadata]:
    """An ONNX Runtime session on the CPU and the metadata of an exported file.

    Args:
        path: file that ``cdgcnet export --format onnx`` wrote.
        threads: threads of ONNX Runtime; None leaves the number to it.
        flush_subnormals: take numbers below 1.2e-38 for 0, in the calling thread too and from then
            on; a graph may take half of its time.

    Raises:
        ModuleNotFoundError: without ONNX Runtime.
        FileNotFoundError: if there is no such file.
        ValueError: if ONNX Runtime cannot load it, or ``cdgcnet export`` did not write it.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ONNX Runtime is not installed; run `pip install 'cdgcnet[export]'`", name=error.name
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings about initializers that it removes
    if threads is not None:
        options.intra_op_num_threads = threads
    if flush_subnormals:
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions have no base class of their own
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path} is no ONNX file that ONNX Runtime {onnxruntime.__version__} can load: {reason}"
        ) from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    return session, ExportMetadata.from_json(text, str(path))


class OnnxPredictor:
    """:class:`cdgcnet.Predictor` for an exported file, with the same results up to rounding.

    The resize before the network, sliding windows and test-time augmentation are those of the
    config at the time of the export; they are stored in the file's metadata.

    Attributes:
        export: the :class:`ExportMetadata` of the file.
        max_pixels: height x width of an image file at most, for those who read files for this
            predictor; INPUT.MAX_PIXELS is no part of an exported file.
        metadata: ``stuff_classes`` and ``stuff_colors``, or None if the file names no classes.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        tta: bool = False,
        threads: int | None = None,
        flush_subnormals: bool = False,
    ):
        """
        Args:
            path: file that ``cdgcnet export --format onnx`` wrote.
            tta: average over the scales and flips of TEST.AUG.
            threads, flush_subnormals: see :func:`open_session`.

        Raises:
            ModuleNotFoundError, FileNotFoundError, ValueError: see :func:`open_session`; also for a
                file that contains the class graph alone.
        """
        self.session, self.export = open_session(path, threads, flush_subnormals)
        if self.export.part != "network":
            raise ValueError(
                f"{path} contains the {self.export.part} alone; expected a whole network, as "
                "`cdgcnet export` writes it without --part"
            )
        self.path = Path(path)
        self.tta = tta
        self.max_pixels = MAX_PIXELS
        self.metadata = None
        if self.export.class_names and self.export.class_colors:
            self.metadata = SimpleNamespace(
                stuff_classes=self.export.class_names,
                stuff_colors=[tuple(color) for color in self.export.class_colors],
            )

    def __call__(self, original_image: np.ndarray) -> dict[str, np.ndarray]:
        """Predict scores.

        Args:
            original_image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` returns it; any size.

        Returns:
            {"sem_seg": (M, H, W) float32}: logits, or probabilities with TTA or windows.

        Raises:
            TypeError, ValueError: for anything else than such an image, saying how to convert it.
        """
        check_bgr_image(original_image)
        size = original_image.shape[:2]
        if self.tta:
            return {"sem_seg": self._averaged_views(original_image)}
        scores, are_logits = self._scores(_resized(original_image, self._input_size(size)))
        scores = _full_size(scores, size)
        if self.export.slide and are_logits:
            scores = _softmax(scores)
        return {"sem_seg": scores}

    def labels(self, original_image: np.ndarray) -> np.ndarray:
        """The class of every pixel, (H, W) uint8; see :meth:`__call__`."""
        check_bgr_image(original_image)
        size = original_image.shape[:2]
        one_pass = not self.tta and self._covers(size) and self._input_size(size) == size
        if one_pass:  # the file contains the argmax, too
            image = np.ascontiguousarray(original_image)[None]
            return self.session.run(["labels"], {"image": image})[0][0]
        return self(original_image)["sem_seg"].argmax(0).astype(np.uint8)

    def label_maps(
        self, original_images: Sequence[np.ndarray], coarse: bool = False
    ) -> list[dict[str, np.ndarray]]:
        """As :meth:`Predictor.label_maps`, but only {"refined": (H, W)}, whatever ``coarse`` is."""
        return [{"refined": self.labels(image)} for image in original_images]

    def probabilities(self, original_image: np.ndarray) -> np.ndarray:
        """The probability of every class at every pixel, (M, H, W) float32."""
        scores = self(original_image)["sem_seg"]
        return scores if self.tta or self.export.slide else _softmax(scores)

    def identity(self) -> dict[str, Any]:
        """What decides what is predicted."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        return {"exported file (SHA-256)": digest, "test-time augmentation": self.tta}

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) at which an image (H, W) enters the network."""
        return shortest_edge_size(size, self.export.min_size, self.export.max_size)

    def _covers(self, size: tuple[int, int]) -> bool:
        """Whether the network sees an image of this size in one piece."""
        slide = self.export.slide
        return slide is None or (size[0] <= slide[0][0] and size[1] <= slide[0][1])

    def _logits(self, image: np.ndarray) -> np.ndarray:
        return self.session.run(["logits"], {"image": np.ascontiguousarray(image)[None]})[0][0]

    def _scores(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Scores (M, h, w) at the size of an image (h, w, 3), and whether they are logits.

        In windows they are the mean of the windows' probabilities.
        """
        if self._covers(image.shape[:2]):
            return self._logits(image), True
        height, width = image.shape[:2]
        total = np.zeros((self.export.num_classes, height, width), np.float32)
        count = np.zeros((height, width), np.float32)
        windows = list(self._windows((height, width)))
        for rows, columns in progress(windows, "windows", "window"):
            total[:, rows, columns] += _softmax(self._logits(image[rows, columns]))
            count[rows, columns] += 1
        return total / count, False

    def _windows(self, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each window; the last one along an axis ends where the axis ends."""
        assert self.export.slide is not None
        axes = []
        for length, crop, stride in zip(size, *self.export.slide, strict=True):
            steps = max(0, math.ceil((length - crop) / stride))
            starts = [max(0, min(i * stride, length - crop)) for i in range(steps + 1)]
            axes.append([slice(start, min(start + crop, length)) for start in starts])
        yield from ((rows, columns) for rows in axes[0] for columns in axes[1])

    def _averaged_views(self, original_image: np.ndarray) -> np.ndarray:
        """The mean of the probabilities over scales and flips, (M, H, W)."""
        size = original_image.shape[:2]
        base = self._input_size(size)
        total = np.zeros((self.export.num_classes, *size), np.float32)
        count = 0
        for scale in self.export.tta_scales:
            view_size = max(1, round(base[0] * scale)), max(1, round(base[1] * scale))
            view = _resized(original_image, view_size)
            for flip in (False, True) if self.export.tta_flip else (False,):
                scores, are_logits = self._scores(view[:, ::-1] if flip else view)
                scores = _full_size(scores, size)
                scores = _softmax(scores) if are_logits else scores
                total += scores[:, :, ::-1] if flip else scores
                count += 1
        return total / count


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 as Detectron2 does: bilinear with antialiasing."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(
        size[::-1], Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


def _full_size(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize scores (M, h, w) to (M, H, W), bilinear without antialiasing."""
    if scores.shape[1:] == size:
        return scores
    return np.stack([cv2.resize(s, size[::-1], interpolation=cv2.INTER_LINEAR) for s in scores])


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    e = np.exp(logits - logits.max(0, keepdims=True))
    return e / e.sum(0, keepdims=True)
