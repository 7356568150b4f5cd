"""Writer: entries are saved when the server is idle, and on closing."""

from __future__ import annotations

import threading
import time

import pytest

from engine.serve import writer as module
from engine.serve.writer import Writer


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.02)
    monkeypatch.setattr(module, "STEP_S", 0.005)


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_saves_in_order_when_idle():
    saved = []
    writer = Writer(saved.append, lambda: False)
    writer.add("a")
    writer.add("b")
    wait_for(lambda: saved == ["a", "b"])
    writer.close(5)


def test_waits_while_busy_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(module, "MOST_S", 0.15)
    saved = []
    writer = Writer(saved.append, lambda: True)
    begin = time.monotonic()
    writer.add("a")
    wait_for(lambda: saved == ["a"])
    assert time.monotonic() - begin > 0.15
    writer.close(5)


def test_discarded_entry_is_not_saved_and_closing_saves_the_rest():
    saved = []
    writer = Writer(saved.append, lambda: True)
    writer.add("a")
    writer.add("b")
    writer.discard("a")
    writer.close(5)
    assert saved == ["b"]


def test_current_entry_is_known_while_it_is_written():
    go, started = threading.Event(), threading.Event()

    def save(_):
        started.set()
        assert go.wait(5)

    writer = Writer(save, lambda: False)
    writer.add("a")
    assert started.wait(5)
    assert writer.current == "a"
    writer.discard("a")
    go.set()
    writer.close(5)
    assert writer.current is None
