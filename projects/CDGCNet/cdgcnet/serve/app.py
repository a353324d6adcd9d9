"""The application: a page, ``POST /predict``, ``/healthz`` and ``/metrics``."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

import cdgcnet
from cdgcnet.data.decoding import MAX_PIXELS
from cdgcnet.serve.answers import Answer, LabelModel, answer
from cdgcnet.serve.uploads import read_upload, requested_format
from cdgcnet.serve.worker import QueueFull, Worker

if TYPE_CHECKING:
    from detectron2.data import Metadata

T = TypeVar("T")

_PAGE_HEADERS = {
    # Everything the page needs is in it.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        queue_size: requests that may wait behind the one that is being predicted.
        upload_bytes: size of an upload.
        pixels: height x width of an image.
        seconds: from the beginning of an upload to its answer.
    """

    queue_size: int = 16
    upload_bytes: int = 50_000_000
    pixels: int = MAX_PIXELS
    seconds: float = 120.0


class _Metrics:
    def __init__(self, worker: Worker):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cdgcnet_requests", "Answers of /predict.", ["status"], registry=self.registry
        )
        self.seconds = Histogram(
            "cdgcnet_prediction_seconds",
            "Time from decoding an upload to encoding its answer.",
            registry=self.registry,
        )
        accepted = Gauge(
            "cdgcnet_accepted_requests",
            "Requests that are being uploaded, waiting or predicted.",
            registry=self.registry,
        )
        accepted.set_function(lambda: worker.accepted)


def create_app(model: LabelModel, metadata: "Metadata", limits: Limits | None = None) -> FastAPI:
    """The ASGI application of a network.

    Args:
        model: called by one thread.
        metadata: provides class names and colors.
        limits: None for the defaults.
    """
    limits = limits or Limits()
    worker = Worker(limits.queue_size)
    metrics = _Metrics(worker)
    page = (files("cdgcnet.serve") / "page.html").read_text(encoding="utf-8")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    # The interactive documentation of FastAPI would load scripts from another host.
    app = FastAPI(
        title="CDGCNet",
        version=cdgcnet.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    @app.get("/", response_class=HTMLResponse)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @app.get("/healthz")
    async def healthz() -> dict[str, object]:
        return {"status": "ok", "classes": len(metadata.stuff_classes), "accepted": worker.accepted}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def predict_upload(upload: bytes, format: str) -> Answer:
        with metrics.seconds.time():
            return answer(model, metadata, upload, format, limits.pixels)

    async def predict_request(request: Request) -> Response:
        deadline = time.monotonic() + limits.seconds
        format = requested_format(request)
        try:
            with worker.place() as place:
                upload = await _until(read_upload(request, limits.upload_bytes), deadline, 408)
                work = place.run(partial(predict_upload, upload, format))
                body, media_type = await _until(_while_connected(work, request), deadline, 504)
        except QueueFull:
            raise HTTPException(
                503,
                f"{limits.queue_size + 1} requests are waiting already; try again later",
                {"Retry-After": "1"},
            ) from None
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        except MemoryError as error:
            raise HTTPException(413, str(error) or "the image does not fit the memory") from error
        return Response(body, media_type=media_type)

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        status = 500
        try:
            response = await predict_request(request)
            status = response.status_code
            return response
        except StarletteHTTPException as error:  # FastAPI's are too; multipart parsing raises it
            status = error.status_code
            raise
        except ClientDisconnect:
            status = 499  # nginx's number for it; nobody is there to read an answer
            return Response(status_code=status)
        except Exception:
            logging.getLogger(__name__).exception("A prediction failed:")
            raise HTTPException(500, "the prediction failed; see the log of the server") from None
        finally:
            metrics.requests.labels(str(status)).inc()

    return app


async def _until(work: Awaitable[T], deadline: float, status: int) -> T:
    try:
        return await asyncio.wait_for(work, max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        doing = "the upload took" if status == 408 else "waiting and prediction took"
        raise HTTPException(status, f"{doing} longer than allowed") from None


async def _while_connected(work: Awaitable[T], request: Request) -> T:
    """The result of ``work``, which is cancelled if the client goes away.

    Raises:
        ClientDisconnect: if it does.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()
