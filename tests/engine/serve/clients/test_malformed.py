"""Malformed requests: 250 random ones all get an answer that is no server error, and the server lives."""

from __future__ import annotations

import json
import random
import socket

import pytest

COUNT = 250
VALID = {
    "/v1/completions": {"prompt": "abc", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
}
FIELDS = (
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed",
    "stop", "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias", "n", "tools", "tool_choice", "echo",
    "response_format", "presence_penalty", "frequency_penalty", "repetition_penalty", "user", "best_of", "suffix",
    "chat_template_kwargs", "unknown", "adapters", "role_mapping", "num_draft_tokens", "xtc_probability",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 1.5, -0.5, 1e308, 10**30, -(10**30), "", "x", "\ud800", "\x00", "nan", [], [[]], {},
    [None], [1, "a"], [256], [-1], [10**12], ["a", 1], {"a": {"b": []}}, {"0": 1e9}, {"999999": 1}, {"x": 1}, [{}],
    [{"role": "user"}], [{"role": 3, "content": 4}], [{"role": "user", "content": [{"type": "image_url"}]}],
    [{"role": "tool", "content": None, "tool_calls": [{"function": {"arguments": "{"}}]}], [{"type": "function"}],
    float("nan"), float("inf"),
)  # fmt: skip


@pytest.fixture(scope="module")
def client(start):
    return start(context=48)


def damaged(rng):
    """A path and a body: bytes that are no JSON, or JSON with random fields and values."""
    path = rng.choice(list(VALID))
    body = dict(VALID[path])
    for _ in range(rng.randrange(1, 4)):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    if rng.random() < 0.2:
        body.pop(rng.choice(list(body)), None)
    content = json.dumps(body).encode()
    kind = rng.random()
    if kind < 0.1:
        content = content[: rng.randrange(len(content))]
    elif kind < 0.2:
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    elif kind < 0.25:
        content = rng.randbytes(rng.randrange(200))
    elif kind < 0.28:
        content = b"[" * 20_000 + b"]" * 20_000
    elif kind < 0.3:
        content = b'{"prompt": "a", "max_tokens": ' + b"9" * 6000 + b"}"
    return path, content


def test_every_malformed_body_gets_an_answer(client):
    rng, statuses = random.Random(13), []
    for number in range(COUNT):
        path, content = damaged(rng)
        reply = client.send("POST", path, content, {"Content-Type": "application/json"})
        statuses.append(reply.status)
        where = f"{number}: {path} {content[:300]!r} -> {reply.status} {reply.body[:300]!r}"
        assert reply.status < 500, where
        if reply.status != 200:
            assert reply.status >= 400 and reply.json["error"]["message"], where
    assert statuses.count(400) > COUNT / 2
    assert client.text().status == 200 and client.send("GET", "/health").status == 200


POST = b"POST /v1/completions HTTP/1.1\r\n"
RAW = (
    b"\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", POST + b"Content-Length: x\r\n\r\n{}",
    POST + b"Content-Length: -5\r\n\r\n{}", POST + b"\r\n", POST + b"X: y\r\n" * 200 + b"\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(RAW)))
def test_bytes_that_are_no_request(client, number):
    """Each gets an answer, except an empty line, which HTTP allows before a request."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as connection:
        connection.sendall(RAW[number])
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b" 500 " not in answer.split(b"\r\n")[0]
    assert answer or RAW[number].startswith(b"\r\n")
    assert client.send("GET", "/health").status == 200
