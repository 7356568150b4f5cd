"""What the connections share: states of the server."""

from __future__ import annotations

from typing import Any

import pytest

from engine.serve.api.service import Service
from engine.serve.errors import RequestError
from engine.serve.options import ServeOptions


def test_requests_wait_for_the_model_and_end_with_the_server() -> None:
    service = Service(ServeOptions(), "tiny")
    assert service.state == "loading"
    with pytest.raises(RequestError, match="loading") as e:
        service.ready()
    assert e.value.status == 503 and e.value.headers["Retry-After"]
    service.stopping = True
    with pytest.raises(RequestError, match="stopping"):
        service.ready()
    assert service.state == "stopping"


def test_open_requests_are_counted() -> None:
    service = Service(ServeOptions(), "tiny")
    with service.open_request():
        assert service.open_requests == 1
    assert service.open_requests == 0


def test_a_dead_generation_thread_is_shown(start: Any) -> None:
    client = start()
    generator = client.server.service.generator
    generator.end(RequestError(503, "ended"), 10)
    assert client.send("GET", "/health").json == {"status": "failed"}
    assert client.text().status == 503
