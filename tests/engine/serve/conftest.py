"""A server of a tiny model on a free port, shared by the tests of a module, and plain HTTP requests to it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine import Knobs, footprint, load
from engine.serve.options import ServeOptions
from engine.serve.server import Server, serving

NO_END = {"logit_bias": {"255": -100}}  # a random model would end at once
Start = Callable[..., Any]


@dataclass(frozen=True)
class Reply:
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events; the last one may be the word [DONE]."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


class Client:
    """Requests to one server, each on a connection of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = int(server.url.split(":")[-1].partition("/")[0])

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def text(self, prompt: Any = "abc", **fields: Any) -> Reply:
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 4, **NO_END, **fields})

    def chat(self, text: str = "hello", **fields: Any) -> Reply:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, **NO_END, **fields})

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.send("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def metric(self, name: str) -> float:
        text = self.send("GET", "/metrics").body.decode()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"headrace_{name}"))


@pytest.fixture(scope="session")
def tiny(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe")


@pytest.fixture(scope="module")
def start(tiny: Path) -> Iterator[Start]:
    """`start(**options)`: a client of a new server, with an engine of its own."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def begin(path: Path = tiny, knobs: Knobs | None = None, **options: Any) -> Client:
            engine = stack.enter_context(load(path, knobs or Knobs(cache_gb=footprint(path).one_token_gb)))
            values = {"port": 0, "name": "tiny", "prompt_cache_gb": 0.01, "grace_s": 5, **options}
            made = Client(stack.enter_context(serving(engine, ServeOptions(**values))))
            made.engine = engine
            return made

        yield begin


@pytest.fixture(scope="module")
def client(start: Start) -> Client:
    """A client of the module's shared server."""
    return start()
