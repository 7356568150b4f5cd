"""The generation thread: errors of the engine, requests beside each other, and the end."""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import pytest

from engine import Knobs


@pytest.mark.parametrize("stream", [True, False])
def test_a_read_error_ends_the_request_and_not_the_server(client: Any, stream: bool) -> None:
    client.engine.state.reader.native.inject(error=errno.EIO)
    reply = client.text("a prompt that needs every expert", stream=stream)
    client.engine.state.reader.native.heal()
    assert reply.status == 500 and reply.json["error"]["code"] == "read_error"
    assert "could not be read" in reply.json["error"]["message"]
    assert client.send("GET", "/health").status == 200
    assert client.text().status == 200


def test_a_read_error_in_a_stream_is_an_event(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    take = type(client.server.service.generator.model_provider.model).__call__

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 5:
            raise OSError("the disk is gone")
        return take(self, *args, **kwargs)

    monkeypatch.setattr(type(client.server.service.generator.model_provider.model), "__call__", fails)
    reply = client.text("wxyz", stream=True, max_tokens=50)
    monkeypatch.undo()
    assert reply.status == 200 and reply.events[-1]["error"]["type"] == "server_error"
    assert client.text().status == 200


def test_the_same_prompt_again_and_its_continuation(client: Any) -> None:
    """A prompt that is cached to its last token once ended mlx-lm's thread."""
    first = client.text("mill", max_tokens=6).json
    ids = client.server.service.generator.engine.encode("mill")
    again = client.text(ids, max_tokens=6).json
    assert first["choices"][0]["text"] == again["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 2
    assert client.text(ids + ids, max_tokens=1).status == 200
    assert client.text((ids + ids)[:-1], max_tokens=1).status == 200
    assert client.text(ids + ids, max_tokens=1).status == 200


def test_several_at_once_get_the_text_they_get_alone(start: Any) -> None:
    client = start(parallel=3)
    prompts = [f"prompt number {n}" * (n + 1) for n in range(4)]
    alone = [client.text(prompt, max_tokens=8).json["choices"][0]["text"] for prompt in prompts]
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        found[n] = client.text(prompts[n], max_tokens=8).json["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[n] for n in range(4)] == alone


def test_a_full_queue_is_429_and_a_stop_ends_what_runs(start: Any) -> None:
    client = start(queue=0, grace_s=0.1)
    replies: list[Any] = []
    thread = threading.Thread(target=lambda: replies.append(client.text(max_tokens=480, stream=True)))
    thread.start()
    deadline = time.monotonic() + 20
    while not client.metric("requests_running") and time.monotonic() < deadline:
        time.sleep(0.002)
    full = client.text()
    assert full.status == 429 and int(full.headers["Retry-After"]) >= 1
    client.server.stop()
    thread.join(20)
    last = replies[0].events[-1]
    assert last == "[DONE]" or last["error"]["code"] == "stopping"
    with pytest.raises(OSError, match="refused"):
        client.text()


def test_knobs_that_depend_on_the_cache_are_named_in_the_answer(start: Any) -> None:
    client = start(knobs=Knobs(cache_gb=0.0005, cold_drop=0.5))
    assert "cold_drop" in client.text().json["timings"]["warning"]
