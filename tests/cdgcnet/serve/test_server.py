"""A real server on loopback: answers, limits, hostile uploads, clients that go away."""

import asyncio
import base64
import io
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from cdgcnet.serve.app import Limits


def labels_of(response):
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def accepted(url):
    return httpx.get(f"{url}/healthz").json()["accepted"]


# ---------------------------------------------------------------- answers


def test_200_concurrent_requests_of_mixed_sizes(serve, model, upload_of):
    # Each image has its own label and size: an answer to another image would show.
    rng = np.random.default_rng(0)
    cases = [(i % 200, tuple(int(n) for n in rng.integers(1, 60, 2))) for i in range(200)]

    async def ask_all(url):
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
            return await asyncio.gather(
                *(client.post("/predict", content=upload_of(*case)) for case in cases)
            )

    with serve(model, Limits(queue_size=200)) as url:
        responses = asyncio.run(ask_all(url))
        assert accepted(url) == 0
        metrics = httpx.get(f"{url}/metrics").text
    for (label, size), response in zip(cases, responses, strict=True):
        labels = labels_of(response)
        assert labels.shape == size and (labels == label).all()
    assert sorted(model.calls) == sorted(label for label, _ in cases)
    assert len(model.threads) == 1
    assert 'cdgcnet_requests_total{status="200"} 200.0' in metrics
    assert "cdgcnet_prediction_seconds_count 200.0" in metrics


def test_formats_by_query_and_accept(serve, model, upload_of):
    png = upload_of(2)
    with serve(model) as url:
        post = lambda query="", **headers: httpx.post(  # noqa: E731
            f"{url}/predict{query}", content=png, headers=headers
        )
        palette = Image.open(io.BytesIO(post().content))
        assert palette.mode == "P" and (np.asarray(palette) == 2).all()
        assert post().headers["content-type"] == "image/png"
        overlay = post("?format=overlay")
        assert overlay.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(overlay.content)).size == (30, 20)
        assert post(accept="image/jpeg").content == overlay.content
        assert post(accept="text/html, application/json;q=0.5").json()["height"] == 20
        assert post(accept="image/png;q=0.1, application/json").json()["width"] == 30
        assert post(accept="text/html").status_code == 406
        unknown = post("?format=gif")
    assert unknown.status_code == 400
    assert unknown.json()["detail"] == (
        "format=gif: expected one of labels, overlay, json, comparison"
    )


def test_json_has_the_shares_of_the_classes(serve, model, upload_of):
    with serve(model) as url:
        found = httpx.post(f"{url}/predict?format=json", content=upload_of(3)).json()
    assert found["changed"] == 0.5  # the upper half was class 0 before
    shares = {c["id"]: (c["name"], c["share"], c["coarse_share"]) for c in found["classes"]}
    assert shares == {3: ("class 3", 1.0, 0.5), 0: ("class 0", 0.0, 0.5)}


def test_pictures_of_a_comparison_have_one_size(serve, model, upload_of):
    with serve(model) as url:
        response = httpx.post(
            f"{url}/predict?format=comparison", content=upload_of(3, (1500, 2100)), timeout=60
        )
    pictures = response.json()["pictures"]
    assert list(pictures) == ["image", "refined", "coarse", "changed"]
    sizes = set()
    for url in pictures.values():
        head, data = url.split(",")
        assert head == "data:image/jpeg;base64"
        sizes.add(Image.open(io.BytesIO(base64.b64decode(data))).size)
    [(width, height)] = sizes
    assert width * height < 2_100_000 and abs(width / height - 1.4) < 0.01


def test_a_form_works_too(serve, model, upload_of):
    with serve(model) as url:
        found = httpx.post(f"{url}/predict", files={"file": ("a.png", upload_of(4))})
        assert (labels_of(found) == 4).all()
        missing = httpx.post(f"{url}/predict", files={"photo": ("a.png", upload_of(4))})
    assert missing.status_code == 400 and '"file"' in missing.json()["detail"]


@pytest.mark.parametrize(
    "sent",
    [
        {"files": [("file", ("a.png", b"a")), ("file", ("b.png", b"b"))]},
        {"content": b"xx", "headers": {"Content-Type": "multipart/form-data"}},
        {"content": b"xx", "headers": {"Content-Type": "multipart/form-data; boundary="}},
    ],
    ids=["two files", "no boundary", "an empty boundary"],
)
def test_a_malformed_form_is_the_clients_mistake(serve, model, sent, caplog):
    with serve(model) as url:
        found = httpx.post(f"{url}/predict", **sent)
    assert found.status_code == 400 and "\n" not in found.json()["detail"]
    assert "A prediction failed" not in caplog.text


def test_page_needs_nothing_from_elsewhere(serve, model):
    with serve(model) as url:
        page = httpx.get(url)
        assert httpx.get(f"{url}/docs").status_code == 404  # it would load foreign scripts
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"(https?:)?//\w", page.text), "an address of another host"


# ---------------------------------------------------------------- limits


def bomb():
    """A PNG of 100 bytes whose header promises 60000 x 60000 pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the upload is empty"),
        (b"no image", "expected PNG"),
        (b"%PDF-1.4", "expected PNG"),
        (b"\x89PNG\r\n\x1a\nbroken", "not a readable image"),
        ("cut", "not a readable image"),
        (b"\xff\xd8\xff\xe0broken", "not a readable image"),
        ("bomb", "3600.0 million pixels"),
    ],
)
def test_bad_uploads_are_one_clear_line_and_the_server_lives(serve, model, upload_of, body, words):
    if body == "bomb":
        body = bomb()
    elif body == "cut":
        body = upload_of(1, (200, 200))[:-40]
    with serve(model) as url:
        response = httpx.post(f"{url}/predict", content=body)
        assert response.status_code == 400
        detail = response.json()["detail"]
        assert words in detail and "\n" not in detail
        assert (labels_of(httpx.post(f"{url}/predict", content=upload_of(5))) == 5).all()
        assert accepted(url) == 0


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("form", [False, True])
def test_large_uploads_are_refused(serve, model, upload_of, chunked, form):
    with serve(model, Limits(upload_bytes=100_000)) as url:
        data = b"x" * 300_000
        headers = {}
        if form:
            request = httpx.Request("POST", url, files={"file": ("a.png", data)})
            data, headers = request.read(), {"content-type": request.headers["content-type"]}
        content = iter([data[:200_000], data[200_000:]]) if chunked else data
        response = httpx.post(f"{url}/predict", content=content, headers=headers)
        assert response.status_code == 413 and "100000 bytes" in response.json()["detail"]
        assert (labels_of(httpx.post(f"{url}/predict", content=upload_of(5))) == 5).all()
        assert accepted(url) == 0


def test_a_full_queue_refuses_at_once(serve, model, upload_of):
    model.pause.clear()
    answers = []
    with serve(model, Limits(queue_size=1)) as url:
        ask = lambda: answers.append(httpx.post(f"{url}/predict", content=upload_of(1)))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: accepted(url) == 2)
        refused = httpx.post(f"{url}/predict", content=upload_of(1))
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "2 requests" in refused.json()["detail"]
        model.pause.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200, 200]


def test_a_prediction_that_takes_too_long(serve, model, upload_of):
    model.pause.clear()
    with serve(model, Limits(seconds=0.3)) as url:
        response = httpx.post(f"{url}/predict", content=upload_of(1))
        assert response.status_code == 504
        assert accepted(url) == 1  # the network still works on it
        model.pause.set()
        wait_until(lambda: accepted(url) == 0)
        assert (labels_of(httpx.post(f"{url}/predict", content=upload_of(5))) == 5).all()


def test_an_upload_that_takes_too_long(serve, model):
    with serve(model, Limits(seconds=0.3)) as url:
        port = int(url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        assert accepted(url) == 0


def test_a_client_that_goes_away_is_not_predicted(serve, model, upload_of):
    model.pause.clear()
    with serve(model, Limits(queue_size=4)) as url:
        first = threading.Thread(
            target=httpx.post,
            args=(f"{url}/predict",),
            kwargs={"content": upload_of(1), "timeout": 60},
        )
        first.start()
        wait_until(model.started.is_set)
        for label in (2, 3):  # they wait behind the first one and give up
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/predict", content=upload_of(label), timeout=0.3)
        wait_until(lambda: accepted(url) == 1)
        model.pause.set()
        first.join()
        assert (labels_of(httpx.post(f"{url}/predict", content=upload_of(5))) == 5).all()
        assert 'status="499"} 2.0' in httpx.get(f"{url}/metrics").text
    assert model.calls == [1, 5]


@pytest.mark.parametrize(
    ("error", "status"), [(MemoryError("too large"), 413), (RuntimeError("a fault"), 500)]
)
def test_a_network_that_fails_does_not_end_the_server(serve, model, upload_of, error, status):
    model.error = error
    with serve(model) as url:
        response = httpx.post(f"{url}/predict", content=upload_of(1))
        assert response.status_code == status
        assert "a fault" not in response.text  # the log has it
        model.error = None
        assert (labels_of(httpx.post(f"{url}/predict", content=upload_of(5))) == 5).all()


# ---------------------------------------------------------------- the end


def test_sigterm_finishes_the_running_request(upload_of, tmp_path):
    script = tmp_path / "server.py"
    script.write_text(
        "import socket, sys, time, numpy as np, uvicorn\n"
        "from types import SimpleNamespace\n"
        "from cdgcnet.serve.app import create_app\n"
        "class Slow:\n"
        "    def label_maps(self, images, coarse=False):\n"
        "        print('predicting', flush=True)\n"
        "        time.sleep(1.5)\n"
        "        return [{'refined': np.full(images[0].shape[:2], 3, np.uint8)}]\n"
        "metadata = SimpleNamespace(stuff_classes=list('abcd'), stuff_colors=[(1, 2, 3)] * 4)\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "print(listener.getsockname()[1], flush=True)\n"
        "config = uvicorn.Config(create_app(Slow(), metadata), log_level='error')\n"
        "uvicorn.Server(config).run(sockets=[listener])\n"
    )
    server = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        answers = []
        ask = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/predict", content=upload_of(1), timeout=60)
            )
        )
        ask.start()
        assert server.stdout.readline() == "predicting\n"
        server.send_signal(signal.SIGTERM)
        ask.join(60)
        assert server.wait(30) in (0, -signal.SIGTERM)
        assert "Traceback" not in server.stderr.read()
        assert (labels_of(answers[0]) == 3).all()
    finally:
        server.kill()
        server.stdout.close()
        server.stderr.close()
        server.wait()
