"""Service: what all connections share once the port is bound: options, state, metrics and the generation thread."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine.engine import Engine
from engine.serve.compute.generator import Generator
from engine.serve.errors import RequestError
from engine.serve.metrics import Metrics
from engine.serve.options import ServeOptions

from .request import Served
from .usage import WARNING


class Service:
    """`generator` is None until an engine is attached. `warning` is set if a knob makes answers depend on the cache."""

    def __init__(self, options: ServeOptions, name: str) -> None:
        self.options = options
        self.name = name
        self.metrics = Metrics()
        self.created = int(time.time())
        self.fingerprint = "headrace"
        self.warning: str | None = None
        self.generator: Generator | None = None
        self.tokenizer: Any = None
        self.served = Served(name, 0, False, False, options)
        self.stopping = False
        self.open_requests = 0
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """`ok` while requests are served; otherwise `loading`, `stopping`, or `failed` after the end of the thread."""
        if self.stopping:
            return "stopping"
        if self.generator is None:
            return "loading"
        return "ok" if self.generator.generation_available() else "failed"

    def attach(self, engine: Engine, generator: Generator) -> None:
        """Serve requests from now on."""
        tokenizer = engine.tokenizer
        vocab = engine.checkpoint.built.vocabulary
        self.tokenizer = tokenizer
        self.served = Served(
            self.name, vocab, bool(tokenizer.has_chat_template), bool(tokenizer.has_tool_calling), self.options
        )
        names = engine.depends_on_cache
        self.warning = WARNING.format(knobs=" and ".join(names)) if names else None
        self.fingerprint = f"{engine.checkpoint.fingerprint[:12]} {engine.mode}"
        self.metrics.watch(generator)
        self.generator = generator

    def ready(self) -> Generator:
        """The generation thread. Raises `RequestError` 503 while the model loads or the server stops."""
        if self.stopping:
            raise RequestError(503, "the server is stopping; send the request to another one", code="stopping")
        if self.generator is None:
            raise RequestError(503, "the model is loading; try again", code="loading", headers={"Retry-After": "5"})
        return self.generator

    @contextmanager
    def open_request(self) -> Iterator[None]:
        """Count a request while it is answered."""
        with self._lock:
            self.open_requests += 1
        try:
            yield
        finally:
            with self._lock:
                self.open_requests -= 1

    def log(self, line: str) -> None:
        """One line on stderr."""
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
