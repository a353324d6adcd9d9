"""Videos and cameras: every frame once, the same frame rate, and nothing half-written."""

import cv2
import numpy as np
import pytest
from PIL import Image

from cdgcnet.data.datasets.catalog import color_map
from cdgcnet.engine import video
from cdgcnet.engine.prediction import OutputFiles
from cdgcnet.engine.prediction_record import Source
from cdgcnet.engine.video import VideoFile, VideoReader, ended_early, predict_video
from cdgcnet.modeling.predictions import PredictionKind

FPS = 12.5


class Metadata:
    """The part of Detectron2's metadata that pictures need."""

    stuff_classes = ("dark", "bright")
    stuff_colors = color_map(2)

    def get(self, name):
        return getattr(self, name)


class Brightness:
    """A "network" whose classes can be read off a frame: bright pixels are of class 1."""

    def label_maps(self, images):
        return [{PredictionKind.REFINED: (x.mean(axis=2) > 127).astype(np.uint8)} for x in images]


class Camera:
    """Stands in for cv2.VideoCapture of a camera that delivers some frames."""

    def __init__(self, frames, fps=FPS):
        self.frames, self.fps = list(frames), fps

    def isOpened(self):
        return True

    def get(self, key):
        return {cv2.CAP_PROP_FPS: self.fps, cv2.CAP_PROP_FRAME_COUNT: -1}[key]

    def read(self):
        if not self.frames:
            return False, None
        frame = self.frames.pop(0)
        if isinstance(frame, BaseException):
            raise frame
        return True, frame

    def release(self):
        pass


def frame(number, size=(48, 64)):
    """Bright in the left ``number`` columns."""
    image = np.zeros((*size, 3), np.uint8)
    image[:, :number] = 255
    return image


def write_video(path, numbers, code="MJPG"):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), FPS, (64, 48))
    for number in numbers:
        writer.write(frame(number))
    writer.release()
    return path


def predict(path, out, *, reader=None, overlay=True, batch_size=1):
    reader = reader or VideoReader(path)
    files = OutputFiles(out, overlay)
    done = predict_video(
        Brightness(), reader, Source(path, "v"), files, Metadata(), batch_size=batch_size
    )
    return done, reader


def facts(path):
    capture = cv2.VideoCapture(str(path))
    keys = (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH)
    found = tuple(capture.get(key) for key in keys)
    capture.release()
    return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_frame_in_order_at_the_same_rate(tmp_path, batch_size):
    numbers = range(4, 60, 8)
    done, reader = predict(
        write_video(tmp_path / "a.avi", numbers), tmp_path / "out", batch_size=batch_size
    )
    assert done == 7 and ended_early(reader, done) is None
    assert facts(tmp_path / "out" / "v_overlay.mp4") == (FPS, 7, 64)
    labels = sorted((tmp_path / "out" / "v").iterdir())
    assert [p.name for p in labels] == [f"{i:06}.png" for i in range(7)]
    for path, number in zip(labels, numbers, strict=True):
        found = np.asarray(Image.open(path))
        assert found.shape == (48, 64)
        assert abs(int(found[24].sum()) - number) <= 1  # JPEG smears the edge


def test_without_overlay_there_are_labels_only(tmp_path):
    predict(write_video(tmp_path / "a.avi", [9]), tmp_path / "out", overlay=False)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["v"]


def test_odd_sizes(tmp_path):
    file = VideoFile(tmp_path / "a.mp4", FPS)
    for _ in range(3):
        file.write(np.zeros((33, 47, 3), np.uint8))
    file.finish()
    assert facts(tmp_path / "a.mp4") == (FPS, 3, 46)


def test_a_video_that_ends_early_keeps_its_frames_and_says_so(tmp_path):
    path = write_video(tmp_path / "a.avi", range(4, 60, 2))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done, reader = predict(path, tmp_path / "out")
    assert 0 < done < 28
    assert f"{path}: ended after {done} of 28 frames" in ended_early(reader, done)
    assert facts(tmp_path / "out" / "v_overlay.mp4")[1] == done
    assert len(list((tmp_path / "out" / "v").iterdir())) == done


@pytest.mark.parametrize("content", [b"", b"no video", None])
def test_unreadable_videos_are_one_line(tmp_path, capfd, content):
    path = tmp_path / "a.mp4"
    if content is None:  # cut off: the index at the end of the file is missing
        write_video(path, range(20), "mp4v")
        content = path.read_bytes()[:400]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video"):
        VideoReader(path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")  # neither FFmpeg nor OpenCV adds to it


def test_a_missing_camera_is_one_line(capfd):
    with pytest.raises(ValueError, match="camera 99: there is no such camera"):
        VideoReader(99, camera=True)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("fps", [0.0, float("nan"), 90000.0])
def test_a_camera_without_a_frame_rate_is_refused(monkeypatch, fps):
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera([], fps))
    with pytest.raises(ValueError, match="camera 0: states no usable frame rate"):
        VideoReader(0, camera=True)


def test_nothing_remains_of_a_video_that_fails(tmp_path, monkeypatch):
    def full(self, picture):
        raise OSError("the disk is full")

    monkeypatch.setattr(VideoFile, "write", full)
    path = write_video(tmp_path / "a.avi", [3, 4, 5])
    with pytest.raises(OSError, match="the disk is full"):
        predict(path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_noticed_although_opencv_does_not_report_it(tmp_path):
    file = VideoFile(tmp_path / "a.mp4", FPS)
    for _ in range(30):
        file.write(np.zeros((32, 32, 3), np.uint8))
    file.release()
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(OSError, match="0 of 30 frames"):
        file.finish()


def test_ctrl_c_ends_a_camera_and_keeps_what_it_has_seen(tmp_path, monkeypatch):
    frames = [frame(10), frame(20), KeyboardInterrupt()]
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera(frames))
    reader = VideoReader(0, camera=True)
    monkeypatch.undo()
    done, reader = predict("0", tmp_path / "out", reader=reader)
    assert done >= 1
    assert len(list((tmp_path / "out" / "v").iterdir())) >= done
    assert facts(tmp_path / "out" / "v_overlay.mp4")[1] >= done


def test_ctrl_c_leaves_nothing_of_a_video(tmp_path, monkeypatch):
    reader = VideoReader(write_video(tmp_path / "a.avi", [1]))
    reader.capture = Camera([frame(10), frame(20), KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "a.avi", tmp_path / "out", reader=reader)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_slow_network_does_not_speed_up_a_camera(tmp_path, monkeypatch):
    # One second passes from frame to frame: each picture stays for a second.
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera([frame(n) for n in (10, 20, 30)]))
    reader = VideoReader(0, camera=True)
    monkeypatch.undo()
    clock = iter(range(100))
    monkeypatch.setattr(video.time, "monotonic", lambda: next(clock))
    done, _ = predict("0", tmp_path / "out", reader=reader)
    assert done == 3
    assert facts(tmp_path / "out" / "v_overlay.mp4")[1] == 25  # 2 s of 12.5 frames


def test_a_stopped_camera_is_no_error_of_counting(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera([]))
    assert ended_early(VideoReader(0, camera=True), 5) is None


def test_an_empty_camera_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda _: Camera([]))
    reader = VideoReader(0, camera=True)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="camera 0: holds no frame"):
        predict("0", tmp_path / "out", reader=reader)
    assert list((tmp_path / "out").iterdir()) == []
