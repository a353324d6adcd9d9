"""Predicts videos and cameras frame by frame, with the same frame rate."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from cdgcnet.engine.prediction import (
    Frame,
    OutputFiles,
    Prediction,
    predict_stream,
)
from cdgcnet.engine.prediction_record import Source
from cdgcnet.utils.io import atomic_write, unfinished_number
from cdgcnet.visualization.colors import overlay
from cdgcnet.visualization.encoding import write_label_png

if TYPE_CHECKING:
    from detectron2.data import Metadata

    from cdgcnet.engine.onnx_predictor import OnnxPredictor
    from cdgcnet.engine.predictor import Predictor

# Errors are reported here in one line, so FFmpeg prints none. OpenCV reads this only once, when it
# opens its first video.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
_CODEC = "mp4v"  # the one that every build of OpenCV can write
# Some containers state a duration instead of a number of frames.
_ROUNDING = 1


class Moment(NamedTuple):
    """When a frame was taken."""

    number: int
    seconds: float  # since the first frame


class VideoReader:
    """An open video file or camera."""

    def __init__(self, source: Path, camera: bool = False):
        """
        Args:
            source: a file, or the number of a camera.
            camera: whether it is a camera.

        Raises:
            ValueError: naming what cannot be opened.
        """
        self.name = f"camera {source}" if camera else str(source)
        self.camera = camera
        level = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self.capture = cv2.VideoCapture(int(str(source)) if camera else str(source))
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not self.capture.isOpened():
            self.capture.release()
            raise ValueError(
                f"{self.name}: there is no such camera, or another program uses it"
                if camera
                else f"{self.name}: not a readable video; it may be cut off, or OpenCV has no "
                "decoder for it"
            )
        self.fps = float(self.capture.get(cv2.CAP_PROP_FPS))
        if not 0 < self.fps <= 1000:
            self.close()
            raise ValueError(f"{self.name}: states no usable frame rate (found {self.fps:g})")
        count = int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 and not camera else None

    def frames(self) -> Iterator[Frame[Moment]]:
        start, index = None, 0
        while True:
            found, image = self.capture.read()
            if not found:
                return
            now = time.monotonic()
            start = now if start is None else start
            seconds = now - start if self.camera else index / self.fps
            yield Frame(Moment(index, seconds), image)
            index += 1

    def close(self) -> None:
        self.capture.release()


class VideoFile:
    """Writes an MP4 of pictures that have the same size; opened by the first one."""

    def __init__(self, path: Path, fps: float):
        self.path = path
        self.fps = fps
        self.written = 0
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: np.ndarray) -> None:
        """Append a picture (H, W, 3) in BGR order.

        Raises:
            OSError: if the file cannot be opened.
        """
        if self._writer is None:
            # The codec has no odd sizes.
            self._size = (max(2, picture.shape[1] & ~1), max(2, picture.shape[0] & ~1))
            code = cv2.VideoWriter.fourcc(*_CODEC)
            self._writer = cv2.VideoWriter(str(self.path), code, self.fps, self._size)
            if not self._writer.isOpened():
                raise OSError(f"{self.path}: OpenCV cannot write a video of {self._size} there")
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._writer.write(picture)
        self.written += 1

    def finish(self) -> None:
        """Close the file and check it: OpenCV does not report a full disk.

        Raises:
            OSError: if not all frames are in the file.
        """
        self.release()
        capture = cv2.VideoCapture(str(self.path))
        found = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        capture.release()
        if found != self.written:
            raise OSError(
                f"{self.path}: {found} of {self.written} frames were written; is the disk full?"
            )

    def release(self) -> None:
        if self._writer is not None:
            self._writer.release()


def check_replaceable(folder: Path, known: bool) -> None:
    """Refuse to replace a folder that may hold anything but the frames of an earlier prediction.

    Args:
        folder: of label maps; it need not exist.
        known: whether earlier predictions account for a folder of this name.

    Raises:
        ValueError: naming the folder and what it holds.
    """
    if not folder.is_dir():
        return
    others = [x.name for x in os.scandir(folder) if not _is_frame(x)]
    if not known or others:
        found = f"holds {min(others)}, which" if others else "was there before and"
        raise ValueError(
            f"{folder} {found} is no prediction of a video; it will not be deleted. Move it away "
            "or choose another --output"
        )


def _is_frame(entry: os.DirEntry) -> bool:
    name = re.fullmatch(r"\d{6,}\.png", entry.name)
    return name is not None and entry.is_file(follow_symlinks=False)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder next to ``path``; it takes the name ``path`` when the block succeeds.

    Raises:
        ValueError: if there is a folder of this name that holds more than frames.
    """
    tmp_path = path.with_name(f"{path.name}.{unfinished_number()}.part")
    try:
        tmp_path.mkdir(parents=True)
        yield tmp_path
        check_replaceable(path, known=True)  # it may have changed since the start
        if path.is_dir():  # --overwrite
            shutil.rmtree(path)
        tmp_path.replace(path)
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)


def video_paths(source: Source, files: OutputFiles) -> list[Path]:
    """NAME_overlay.mp4, and the folder NAME of label maps."""
    overlay_path = files.folder / f"{source.name}_overlay.mp4"
    return [overlay_path] * files.overlay + [files.folder / source.name]


def predict_video(
    predictor: Predictor | OnnxPredictor,
    reader: VideoReader,
    source: Source,
    files: OutputFiles,
    metadata: Metadata,
    batch_size: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> int:
    """Predict all frames of a video, or those of a camera until Ctrl-C.

    The label maps 000000.png, 000001.png … are those of the predicted frames. A camera's frames
    that pass while the network works are missing there; in the overlay video the frame before
    stays for as long, so that it plays at the speed of the camera.

    Args:
        predictor: the network.
        reader: of the video; closed at the end.
        source: names the files.
        files: what to write; probabilities are not written for videos.
        metadata: provides class names and colors.
        batch_size: frames that share a forward pass.
        progress: called after each frame.

    Returns:
        The number of predicted frames.

    Raises:
        ValueError, OSError: for a video without frames, or a frame that cannot be written; then no
            file is left.
    """
    *overlays, folder = video_paths(source, files)
    done = 0
    with ExitStack() as stack:
        stack.callback(reader.close)
        labels_folder = stack.enter_context(atomic_folder(folder))
        video = None
        if overlays:
            video = VideoFile(stack.enter_context(atomic_write(overlays[0])), reader.fps)
            stack.callback(video.release)

        def write(prediction: Prediction[Moment]) -> None:
            nonlocal done
            moment = prediction.key
            path = labels_folder / f"{moment.number:06}.png"
            write_label_png(path, prediction.labels, metadata)
            done += 1
            if video is None:
                return
            rgb = overlay(prediction.image[:, :, ::-1], prediction.labels, metadata)
            picture = np.ascontiguousarray(rgb[:, :, ::-1])
            video.write(picture)
            while reader.camera and video.written < moment.seconds * reader.fps:
                video.write(picture)

        depth = 1 if reader.camera else 2  # what waits for a camera would be out of date
        stream = predict_stream(
            predictor, reader.frames(), write, batch_size=batch_size, depth=depth
        )
        try:
            for _, error in stream:
                if error is not None:
                    raise error
                progress()
        except KeyboardInterrupt:
            if not reader.camera:
                raise
        finally:
            stream.close()  # type: ignore[attr-defined]  # waits for its threads
        if not done:
            raise ValueError(f"{reader.name}: holds no frame that can be decoded")
        if video is not None:
            video.finish()
    return done


def ended_early(reader: VideoReader, done: int) -> str | None:
    """A message if a video had fewer frames than it states, or a camera stopped."""
    if reader.count is not None and done < reader.count - _ROUNDING:
        return (
            f"{reader.name}: ended after {done} of {reader.count} frames; the predictions of "
            "these are complete"
        )
    return None
