"""The images or texts of a request to `/predict/{name}`, in whatever way they were sent."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.people import PredictRequest, parse_predict
from orchestrator.serve.protocol.tensors import MAX_ROWS

Kind = Literal["image", "text"]


@dataclass(frozen=True)
class Upload:
    """What a client sent.

    Attributes:
        items: the content of each file, or what is wrong with it.
        several: whether the client sent a batch, even if of one, and expects a list.
    """

    items: Sequence[bytes | RequestError]
    several: bool


async def read_upload(request: Request, kind: Kind) -> Upload:
    """Reads a request's body: a file or text itself, a form of files, or JSON.

    Args:
        kind: what the model reads.

    Raises:
        RequestError: if the body as a whole is wrong.
    """
    said = request.headers.get("content-type", "")
    type_, _, parameters = said.partition(";")
    type_ = type_.strip().lower()
    if type_ == "multipart/form-data":
        return await _form(request, kind)
    if type_ == "application/json":
        return _json(parse_predict(await request.body()), kind)
    charset = parameters.lower().replace(" ", "").partition("charset=")[2].strip('"')
    if kind == "text" and charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise RequestError(f"texts are UTF-8, not {charset[:40]!r}", 415)
    return Upload([await request.body()], several=False)


async def _form(request: Request, kind: Kind) -> Upload:
    """The files of a form, in their order; for models of texts, its other fields too."""
    body = await request.body()
    items: list[bytes | RequestError] = []
    try:
        async with request.form(max_files=MAX_ROWS, max_fields=MAX_ROWS) as form:
            at = 0
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    content = await value.read()
                    items.append(content)
                    at = _content(body, at) + len(content)
                elif kind == "text":
                    item, at = _field(body, value, at)
                    items.append(item)
    except HTTPException as error:
        raise RequestError(f"the form can't be read: {error.detail}") from None
    if not items:
        raise RequestError(f"the form has no file; `curl -F {kind}=@FILE` sends one")
    return Upload(items, several=len(items) > 1)


def _field(body: bytes, value: str, at: int) -> tuple[bytes | RequestError, int]:
    """The content of a form's field, and where it ends; what is no UTF-8 was read as Latin-1.

    Args:
        at: where the part before it ended.
    """
    start, data = _content(body, at), value.encode()
    if body.startswith(data + b"\r\n--", start):
        return data, start + len(data)
    return RequestError("a field of the form is no UTF-8"), start + len(value)


def _content(body: bytes, at: int) -> int:
    """Where a part's content begins, behind its head and an empty line."""
    return body.find(b"\r\n\r\n", at) + 4


def _json(asked: PredictRequest, kind: Kind) -> Upload:
    one, several = (asked.text, asked.texts) if kind == "text" else (asked.image, asked.images)
    if one is None and several is None:
        raise RequestError(f"the model reads {kind}s; send {kind!r} or '{kind}s'")
    items = [one] if one is not None else list(several or ())
    if len(items) > MAX_ROWS:
        raise RequestError(f"a request holds 1 to {MAX_ROWS} {kind}s, got {len(items)}")
    read = _from_base64 if kind == "image" else str.encode
    return Upload([read(item) for item in items], several=one is None)


def _from_base64(text: str) -> bytes | RequestError:
    """A file from its base64, which may stand in a `data:` URL."""
    try:
        return base64.b64decode(text.partition(";base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError):
        return RequestError("the image is no base64")
