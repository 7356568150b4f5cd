"""Clients that leave: the model is free within a token or a prefill step, and the next request is served."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

PASS_S = 0.03  # of the slowed model: the server needs up to 0.05 s to see that a client is gone
MOST_PASSES = 5


class Counting:
    """A model whose passes take time and are counted."""

    def __init__(self, model):
        self._model = model
        self.passes = 0
        self.began = threading.Event()

    def __call__(self, *args, **kwargs):
        time.sleep(PASS_S)
        self.passes += 1
        self.began.set()
        return self._model(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._model, name)


@pytest.fixture(scope="module")
def client(start, tiny):
    from engine import Knobs, footprint

    found = start(knobs=Knobs(cache_gb=footprint(tiny).one_token_gb, prefill_chunk=16))
    provider = found.server.service.generator.model_provider
    provider.model = found.model = Counting(provider.model)
    return found


def send(client, **fields):
    """A request whose answer is not read."""
    body = json.dumps({"max_tokens": 400, "logit_bias": {"255": -100}, **fields}).encode()
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("when", ["stream", "whole", "prefill", "prefill of a stream"])
def test_model_is_free_within_a_few_passes(client, when):
    client.model.began.clear()
    before = client.model.passes
    if "prefill" in when:
        connection = send(client, prompt=f"{when} " * 20, max_tokens=10, stream="stream" in when)
        assert client.model.began.wait(30)
    else:
        connection = send(client, prompt=when, stream=when == "stream")
        if when == "stream":
            connection.recv(1)
        else:
            assert client.model.began.wait(30)
    connection.close()
    at = client.model.passes
    answer = client.text("next", max_tokens=1)
    assert answer.status == 200
    assert client.model.passes - at <= MOST_PASSES + 3  # 3: those of the next request
    assert client.model.passes - before < 30
    assert client.metric("requests_running") == 0 == client.metric("requests_waiting")


def test_client_that_leaves_the_queue_never_computes(client):
    client.model.began.clear()
    first = send(client, prompt="first", max_tokens=12)
    assert client.model.began.wait(30)
    queued = [send(client, prompt=f"queued {n}", max_tokens=400) for n in range(3)]
    time.sleep(0.1)
    for connection in queued:
        connection.close()
    before = client.model.passes
    assert client.text("last", max_tokens=1).status == 200
    assert client.model.passes - before < 25
    assert b"200" in first.recv(100)
    first.close()


def test_half_sent_request_blocks_nothing(client):
    half = socket.create_connection(("127.0.0.1", client.port), timeout=30)
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
    assert client.text("x", max_tokens=1).status == 200
    half.close()
