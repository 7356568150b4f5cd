"""Bodies: lengths, codings, limits and JSON."""

from __future__ import annotations

import io

import pytest

from engine.serve.api.body import parse_object, read_body
from engine.serve.errors import RequestError


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"", 411),
        ({"Content-Length": "-1"}, b"", 400),
        ({"Content-Length": "ten"}, b"", 400),
        ({"Content-Length": "1" * 30}, b"", 400),
        ({"Content-Length": "101"}, b"x" * 101, 413),
        ({"Content-Length": "9"}, b"short", 400),
        ({"Content-Length": "2", "Transfer-Encoding": "chunked"}, b"{}", 400),
        ({"Transfer-Encoding": "gzip"}, b"", 400),
        ({"Transfer-Encoding": "chunked"}, b"zz\r\n", 400),
        ({"Transfer-Encoding": "chunked"}, b"-5\r\n", 400),
        ({"Transfer-Encoding": "chunked"}, b"3\r\nabcX\r\n0\r\n\r\n", 400),
        ({"Transfer-Encoding": "chunked"}, b"60\r\n" + b"x" * 96 + b"\r\n60\r\n", 413),
    ],
)
def test_wrong_bodies(headers: dict[str, str], body: bytes, status: int) -> None:
    with pytest.raises(RequestError) as e:
        read_body(headers, io.BufferedReader(io.BytesIO(body)), 100)  # type: ignore[arg-type]
    assert e.value.status == status


def test_whole_and_chunked_bodies() -> None:
    assert read_body({"Content-Length": "2"}, io.BufferedReader(io.BytesIO(b"{}rest")), 100) == b"{}"  # type: ignore[arg-type]
    chunks = b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n"
    assert read_body({"Transfer-Encoding": "Chunked"}, io.BufferedReader(io.BytesIO(chunks)), 100) == b"{}"  # type: ignore[arg-type]


def test_a_body_that_takes_too_long_is_408() -> None:
    with pytest.raises(RequestError) as e:
        read_body({"Content-Length": "2"}, io.BufferedReader(io.BytesIO(b"{}")), 100, seconds=-1)  # type: ignore[arg-type]
    assert e.value.status == 408


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_400(body: bytes) -> None:
    with pytest.raises(RequestError) as e:
        parse_object(body)
    assert e.value.status == 400 and "\n" not in str(e.value)


def test_an_object() -> None:
    assert parse_object('{"a": "é"}'.encode()) == {"a": "é"}
