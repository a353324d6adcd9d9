"""A network whose labels can be read off an image, and a server around it."""

import contextlib
import io
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra [serve]")

from cdgcnet.data.datasets.catalog import color_map
from cdgcnet.modeling.predictions import PredictionKind
from cdgcnet.serve.app import create_app


class Metadata:
    """The part of Detectron2's metadata that the server needs."""

    stuff_classes = (*(f"class {i}" for i in range(8)), "<b>hostile</b>")
    stuff_colors = color_map(9)


class TopRight:
    """The class of every pixel is the blue value of the top right one; coarse is class 0 there.

    Attributes:
        calls: the label of each predicted image.
        threads: the threads that have called.
        pause: waited for in each call.
    """

    def __init__(self):
        self.calls, self.threads = [], set()
        self.started = threading.Event()
        self.pause = threading.Event()
        self.pause.set()
        self.error = None

    def label_maps(self, images, coarse=False):
        self.threads.add(threading.get_ident())
        self.started.set()
        assert self.pause.wait(60)
        if self.error is not None:
            raise self.error
        found = []
        for image in images:
            self.calls.append(int(image[0, -1, 0]))
            labels = np.full(image.shape[:2], self.calls[-1], np.uint8)
            maps = {PredictionKind.REFINED: labels}
            if coarse:
                before = labels.copy()
                before[: len(before) // 2] = 0
                maps[PredictionKind.COARSE] = before
            found.append(maps)
        return found


@pytest.fixture
def model():
    return TopRight()


@pytest.fixture
def upload_of():
    """``upload_of(label, (H, W))``: a PNG for which the network predicts that label."""

    def make(label, size=(20, 30)):
        image = np.zeros((*size, 3), np.uint8)
        image[0, -1, 2] = label
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        return file.getvalue()

    return make


@pytest.fixture
def serve():
    """``with serve(model, limits) as url:`` a server on a free port of this machine."""
    import uvicorn

    @contextlib.contextmanager
    def start(model, limits=None):
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            create_app(model, Metadata(), limits), access_log=False, log_level="error"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            listener.close()

    return start
