"""Clients: commands to the client process, its errors, and the figures of its answers."""

from __future__ import annotations

import pytest

from engine.bench.serving.clients import clients_of, figures
from engine.errors import HeadraceError


def test_process_without_a_server():
    with clients_of("http://127.0.0.1:9/v1") as clients:
        assert clients.send("soak", seconds=0, clients=1, prompts=["x"], tokens=1, seed=1) == {"counts": {}}


def test_process_that_ended_is_an_error():
    with clients_of("http://127.0.0.1:9/v1") as clients:
        clients._process.kill()
        clients._process.wait(10)
        with pytest.raises((HeadraceError, BrokenPipeError)):
            clients.send("soak", seconds=0, clients=1, prompts=["x"], tokens=1, seed=1)


def test_figures():
    answers = [[{"tokens": 4, "ttft_s": 0.1}, {"tokens": 6, "ttft_s": 0.3}], [{"tokens": 10, "ttft_s": 0.2}]]
    found = figures({"seconds": 2.0, "answers": answers})
    assert found["tok_s"] == 10 and found["ttft_ms"] == 200 and found["ttft_ms_most"] == 300
