"""One connection: keys, origins, errors, malformed HTTP and disconnections."""

from __future__ import annotations

import socket
from typing import Any


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_a_key_is_required_where_one_is_set(start: Any) -> None:
    client = start(api_key="secret", cors=("https://app.example",))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer sécret"}):
        reply = client.send(
            "GET", "/v1/models", None, {k: v.encode("latin-1").decode("latin-1") for k, v in headers.items()}
        )
        assert reply.status == 401 and reply.json["error"]["code"] == "invalid_api_key"
    assert client.text().status == 401
    assert client.post("/v1/completions", {"prompt": "a", "max_tokens": 1}, Authorization="Bearer secret").status == 200
    assert client.send("GET", "/health").status == 200

    reply = client.send("OPTIONS", "/v1/completions", None, {"Origin": "https://app.example"})
    assert reply.status == 204 and reply.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "Access-Control-Allow-Origin" not in client.send("GET", "/health", None, {"Origin": "https://other"}).headers


def test_a_page_of_another_origin_is_refused(client: Any) -> None:
    reply = client.post("/v1/completions", {"prompt": "a"}, Origin="https://evil.example")
    assert reply.status == 403 and "Access-Control-Allow-Origin" not in reply.headers


def test_malformed_http_gets_json(client: Any) -> None:
    for data in (b"nonsense\r\n\r\n", b"GET /health HTTP/9.9\r\n\r\n", b"GET " + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n"):
        head, _, body = raw(client.port, data).partition(b"\r\n\r\n")
        assert b"application/json" in head and body.startswith(b'{"error": '), data[:40]
    assert client.send("GET", "/health").status == 200


def test_a_body_above_the_limit_is_refused_and_the_answer_arrives(start: Any) -> None:
    client = start(max_body_mb=0.01)
    reply = client.post("/v1/completions", {"prompt": "x" * 1_000_000})
    assert reply.status == 413 and reply.json["error"]["type"] == "invalid_request_error"


def test_chunked_bodies_and_missing_lengths(client: Any) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
    body = b'{"prompt": "a", "max_tokens": 1}'
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    assert b" 200 " in raw(client.port, chunked).split(b"\r\n")[0]
    assert b" 411 " in raw(client.port, head + b"\r\n").split(b"\r\n")[0]


def test_log_lines_have_no_control_characters(client: Any, capsys: Any) -> None:
    client.send("GET", "/a%1b[31m")
    raw(client.port, b"GET /\x1b[31m HTTP/1.1\r\nHost: x\r\n\r\n")
    assert "\x1b" not in capsys.readouterr().err
