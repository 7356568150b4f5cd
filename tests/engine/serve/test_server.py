"""The server's beginning and end."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from engine import HeadraceError, Knobs, load
from engine.serve.options import ServeOptions
from engine.serve.server import Server, run, serving


def test_a_port_in_use_and_the_state_while_loading() -> None:
    server = Server(ServeOptions(port=0), "tiny")
    port = int(server.url.split(":")[-1].partition("/")[0])
    try:
        with pytest.raises(HeadraceError, match=rf"--port {port} of 127.0.0.1 cannot be used \(Address already in use\)"):
            Server(ServeOptions(port=port), "tiny")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/health")
        response = connection.getresponse()
        assert response.status == 503 and response.read() == b'{"status": "loading"}'
        connection.close()
    finally:
        server.stop()


def test_a_connection_too_many_gets_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.serve.server.MOST_CONNECTIONS", 1)
    server = Server(ServeOptions(port=0), "tiny")
    port = int(server.url.split(":")[-1].partition("/")[0])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            time.sleep(0.2)
            with socket.create_connection(("127.0.0.1", port), timeout=10) as second:
                assert b"503" in second.recv(100)
    finally:
        server.stop()


def test_what_is_printed_at_the_start(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(tiny, Knobs(cache_gb=0.0005, cache_prior=0.5)) as engine, serving(engine, ServeOptions(port=0)) as server:
        server.announce(engine)
        out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith(f"serving {tiny.name} (streamed float32 cpu buffered, cache 0.0005 GB") and "/v1" in out[-1]
    assert any("no chat template" in line for line in out) and any("cache_prior" in line for line in out)


def test_run_ends_with_the_generation_thread(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Server] = []
    announce = Server.announce
    monkeypatch.setattr(Server, "announce", lambda self, engine: (seen.append(self), announce(self, engine)))
    status: list[int] = []
    with load(tiny, Knobs()) as engine:
        thread = threading.Thread(target=lambda: status.append(run(engine, ServeOptions(port=0, grace_s=0))))
        thread.start()
        deadline = time.monotonic() + 20
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        generator: Any = seen[0].service.generator
        generator._stop = True
        thread.join(20)
    assert status == [1]
