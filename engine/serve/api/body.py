"""Bodies: reads a request's body within a size and a time, and parses it as a JSON object."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from engine.errors import first_line
from engine.serve.errors import RequestError
from engine.system.strict_json import from_json

READ_SECONDS = 60.0  # for a whole body
LINE = 1024  # of a chunk's header


def read_body(headers: Mapping[str, str], stream: BinaryIO, limit: int, seconds: float = READ_SECONDS) -> bytes:
    """The body that the headers announce.

    Raises `RequestError`: 411 without a length, 400 for a wrong length or an incomplete body, 413 above `limit` bytes, 408
    if it takes more than `seconds`.
    """
    deadline = time.monotonic() + seconds
    coding = (headers.get("Transfer-Encoding") or "").strip().lower()
    text = headers.get("Content-Length")
    if coding and text is not None:
        raise RequestError(400, "Content-Length and Transfer-Encoding exclude each other; send one of them")
    if coding == "chunked":
        return _read_chunked(stream, limit, deadline)
    if coding:
        raise RequestError(400, f"Transfer-Encoding {coding[:40]!r} is not supported; use Content-Length or chunked")
    if text is None:
        raise RequestError(411, "Content-Length is missing; send it")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise RequestError(400, f"Content-Length {text[:40]!r} is not a whole number")
    return _read(stream, _checked(int(text), limit), deadline)


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises `RequestError` 400 for anything else, NaN and infinity included."""
    try:
        value = from_json(body.decode())
    except UnicodeDecodeError as e:
        raise RequestError(400, f"the body is not UTF-8 (byte {e.start})", code="invalid_json") from e
    except RecursionError as e:
        raise RequestError(400, "the body's JSON is nested too deeply", code="invalid_json") from e
    except ValueError as e:  # also a number of too many digits
        raise RequestError(400, f"the body is not JSON: {first_line(e)}", code="invalid_json") from e
    if not isinstance(value, dict):
        raise RequestError(400, f"the body must be a JSON object, not {type(value).__name__}", code="invalid_json")
    return value


def _checked(length: int, limit: int) -> int:
    if length > limit:
        raise RequestError(413, f"a body of {length} bytes is above the limit of {limit}; send less, or raise --max-body-mb")
    return length


def _read(stream: BinaryIO, length: int, deadline: float) -> bytes:
    parts, left = [], length
    while left:
        if time.monotonic() > deadline:
            raise RequestError(408, "the body took too long to arrive; send it faster")
        part = stream.read1(min(left, 1 << 16))  # type: ignore[attr-defined]
        if not part:
            raise RequestError(400, f"the body ended after {length - left} of {length} bytes")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _read_chunked(stream: BinaryIO, limit: int, deadline: float) -> bytes:
    body = b""
    while True:
        size = stream.readline(LINE).partition(b";")[0].strip()
        try:
            length = int(size, 16)
        except ValueError as e:
            raise RequestError(400, "the body's chunked coding is broken") from e
        if length < 0 or b"_" in size or b"+" in size:
            raise RequestError(400, "the body's chunked coding is broken")
        if length == 0:
            while stream.readline(LINE).strip():  # trailing headers
                if time.monotonic() > deadline:
                    raise RequestError(408, "the body took too long to arrive; send it faster")
            return body
        _checked(len(body) + length, limit)
        body += _read(stream, length, deadline)
        if stream.readline(LINE).strip():
            raise RequestError(400, "the body's chunked coding is broken")
