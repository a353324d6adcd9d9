"""Predicts image files: reads ahead, predicts in batches, and writes behind the network.

``prediction_record`` lets the same command resume where it was interrupted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import Image

from cdgcnet.data.image_io import read_image
from cdgcnet.engine.prediction_record import PredictionRecord, Source
from cdgcnet.utils.io import atomic_write
from cdgcnet.visualization.colors import fit_screen, overlay
from cdgcnet.visualization.encoding import write_label_png

if TYPE_CHECKING:
    from detectron2.data import Metadata

    from cdgcnet.engine.onnx_predictor import OnnxPredictor
    from cdgcnet.engine.predictor import Predictor

_AHEAD = 2  # batches that are read ahead, and images that wait to be written
_END = object()

T = TypeVar("T")


@dataclass(frozen=True)
class OutputFiles:
    """Which files a prediction consists of.

    Attributes:
        folder: for all predictions.
        overlay: whether to draw NAME_overlay.jpg.
        probabilities: whether to write NAME_probabilities.npz.
    """

    folder: Path
    overlay: bool = True
    probabilities: bool = False

    def paths(self, name: str) -> list[Path]:
        """The label map comes last, because it is written last."""
        ends = ["_overlay.jpg"] * self.overlay + ["_probabilities.npz"] * self.probabilities
        return [self.folder / f"{name}{end}" for end in (*ends, ".png")]


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The items of an iterable, computed by a thread at most ``depth`` items ahead."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(next, iterator, _END) for _ in range(depth))
        while (item := pending.popleft().result()) is not _END:
            pending.append(thread.submit(next, iterator, _END))
            yield item  # type: ignore[misc]


class Frame(NamedTuple, Generic[T]):
    """An image in BGR order (H, W, 3), or the error met while it was read."""

    key: T
    image: np.ndarray | Exception


class Prediction(NamedTuple, Generic[T]):
    """A predicted image.

    Attributes:
        key: that of the frame.
        image: (H, W, 3) uint8 in BGR order.
        labels: (H, W) uint8.
        probabilities: (M, H, W) float32, if requested.
    """

    key: T
    image: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray | None


def same_size_batches(frames: Iterable[Frame[T]], batch_size: int) -> Iterator[list[Frame[T]]]:
    """Consecutive images of the same size, at most ``batch_size`` at a time; errors alone."""
    batch: list[Frame[T]] = []
    for frame in frames:
        if batch and _size(frame) != _size(batch[0]):
            yield batch
            batch = []
        batch.append(frame)
        if len(batch) == batch_size or _size(frame) is None:
            yield batch
            batch = []
    if batch:
        yield batch


def _size(frame: Frame) -> tuple[int, ...] | None:
    return None if isinstance(frame.image, Exception) else frame.image.shape


def predict_batch(
    predictor: Predictor | OnnxPredictor, batch: Sequence[Frame[T]], probabilities: bool
) -> list[Prediction[T]]:
    images = [frame.image for frame in batch if not isinstance(frame.image, Exception)]
    assert len(images) == len(batch)  # an image that could not be read is never in a batch
    keys = [frame.key for frame in batch]
    if probabilities:
        found = []
        for key, image in zip(keys, images, strict=True):
            values = predictor.probabilities(image)
            found.append(Prediction(key, image, values.argmax(axis=0).astype(np.uint8), values))
        return found
    maps: Sequence[Mapping[Any, np.ndarray]] = predictor.label_maps(images)
    return [
        Prediction(key, image, labels["refined"], None)
        for key, image, labels in zip(keys, images, maps, strict=True)
    ]


def predict_stream(
    predictor: Predictor | OnnxPredictor,
    frames: Iterable[Frame[T]],
    write: Callable[[Prediction[T]], None],
    *,
    batch_size: int = 1,
    probabilities: bool = False,
    depth: int = _AHEAD,
) -> Iterator[tuple[T, Exception | None]]:
    """Read, predict and write at the same time: reading and writing have a thread each.

    Args:
        predictor: the network.
        frames: read by a thread, ``depth`` batches ahead.
        write: called by one thread, in order.
        batch_size: images of the same size that share a forward pass.
        probabilities: whether ``write`` needs them.
        depth: also the number of predictions that may wait to be written.

    Yields:
        The key of each finished image, and the error if it could not be read, predicted or written.
    """
    waiting: deque[tuple[T, Future]] = deque()

    def finish(most: int) -> Iterator[tuple[T, Exception | None]]:
        while len(waiting) > most:
            key, future = waiting.popleft()
            error = future.exception()
            if error is not None and not isinstance(error, (ValueError, OSError, MemoryError)):
                raise error
            yield key, error

    with ThreadPoolExecutor(1) as thread:
        for batch in same_size_batches(prefetch(frames, depth * batch_size), batch_size):
            first = batch[0].image
            if isinstance(first, Exception):
                yield batch[0].key, first
                continue
            try:
                predictions = predict_batch(predictor, batch, probabilities)
            except (ValueError, OSError, MemoryError) as error:
                for frame in batch:
                    yield frame.key, error
                continue
            for prediction in predictions:
                yield from finish(depth - 1)
                waiting.append((prediction.key, thread.submit(write, prediction)))
        yield from finish(0)


def read_frame(source: Source, max_pixels: int) -> Frame[Source]:
    """The image of a file, or why it cannot be read."""
    try:
        return Frame(source, read_image(source.path, "BGR", max_pixels))
    except (ValueError, OSError, MemoryError) as error:
        return Frame(source, error)


def write_files(prediction: Prediction[Source], files: OutputFiles, metadata: Metadata) -> None:
    """Write the files of one image, each atomically, and the label map last."""
    *others, label_path = files.paths(prediction.key.name)
    for path in others:
        with atomic_write(path) as tmp_path:
            if path.suffix == ".jpg":
                image, labels = fit_screen(prediction.image, prediction.labels)
                drawn = overlay(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), labels, metadata)
                Image.fromarray(drawn).save(tmp_path)
            else:
                assert prediction.probabilities is not None
                np.savez_compressed(
                    tmp_path,
                    probabilities=prediction.probabilities.astype(np.float16),
                    classes=np.array(metadata.stuff_classes),
                )
    write_label_png(label_path, prediction.labels, metadata)


def predict_images(
    predictor: Predictor | OnnxPredictor,
    sources: Sequence[Source],
    files: OutputFiles,
    record: PredictionRecord,
    metadata: Metadata,
    batch_size: int = 1,
) -> Iterator[tuple[Source, Exception | None]]:
    """Predict image files.

    Args:
        predictor: the network.
        sources: the images.
        files: what to write.
        record: of the output folder; started.
        metadata: provides class names and colors.
        batch_size: consecutive images of the same size that share a forward pass.

    Yields:
        Each image when its files are written, and the error if there was one.
    """

    def write(prediction: Prediction[Source]) -> None:
        record.add(prediction.key)
        write_files(prediction, files, metadata)

    yield from predict_stream(
        predictor,
        (read_frame(source, predictor.max_pixels) for source in sources),
        write,
        batch_size=batch_size,
        probabilities=files.probabilities,
    )
