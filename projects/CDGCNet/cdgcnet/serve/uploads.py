"""Reads uploads of a bounded size, and works out which kind of answer a client wants."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

from cdgcnet.serve.answers import FORMATS

_FIELD = "file"
# Media types in the Accept header -> format, by preference of the server.
_ACCEPTED = {
    "image/png": "labels",
    "image/jpeg": "overlay",
    "application/json": "json",
    "image/*": "labels",
    "application/*": "json",
    "*/*": "labels",
}


def requested_format(request: Request) -> str:
    """The format of ?format=, or of the Accept header.

    Raises:
        HTTPException: 400 for an unknown format, 406 if no accepted type can be made.
    """
    if (name := request.query_params.get("format")) is not None:
        if name not in FORMATS:
            raise HTTPException(400, f"format={name[:50]}: expected one of {', '.join(FORMATS)}")
        return name
    wanted: list[tuple[str, float]] = []
    for part in request.headers.get("accept", "*/*").split(","):
        media_type, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            wanted.append((media_type, float(quality)))
        except ValueError:
            continue
    wanted.sort(key=lambda pair: -pair[1])  # stable: the order of the header decides between equals
    for media_type, weight in wanted:
        if media_type in _ACCEPTED and weight > 0:
            return _ACCEPTED[media_type]
    raise HTTPException(406, "Accept: expected image/png, image/jpeg or application/json")


async def read_upload(request: Request, max_bytes: int) -> bytes:
    """The image file in the body of a request, or in its form field "file".

    Raises:
        HTTPException: 413 for a body that is too large, 400 for one without a file.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    limited = Request(request.scope, _at_most(request.receive, max_bytes))
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        data = await limited.body()
    else:
        async with limited.form(max_files=1, max_fields=10) as form:
            file = form.get(_FIELD)
            if not isinstance(file, UploadFile):
                raise HTTPException(400, f'the form has no file in its field "{_FIELD}"')
            data = await file.read()
    if not data:
        raise HTTPException(400, "the upload is empty; expected an image file")
    return data


Message = MutableMapping[str, Any]


def _at_most(
    receive: Callable[[], Awaitable[Message]], max_bytes: int
) -> Callable[[], Awaitable[Message]]:
    """``receive`` that stops a body without a stated length when it gets too large."""
    total = 0

    async def limited() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > max_bytes:
            raise _too_large(max_bytes)
        return message

    return limited


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the upload is larger than the {max_bytes} bytes that are allowed")
