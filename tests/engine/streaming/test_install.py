"""Install: pinned experts stay, the cache has its size and shape, and the reader has its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import configuration
from mlx.utils import tree_flatten
from tiny import make

from engine import Checkpoint, CheckpointError, Judge, Knobs, ReadError, footprint, load
from engine.cache.requests import PoolRequests
from engine.disk.reader import Reader
from engine.measure.judge import Text
from engine.model.resident import read_resident
from engine.streaming.decode_state import DecodeState
from engine.streaming.install import decode_state_for, possible

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:40], TEXT[:30]), Text("b", "prose", TEXT[::-1][:40], TEXT[30:60])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def quarter(path: Path) -> float:
    """The size of a cache for a little more than a third of the experts."""
    f = footprint(path)
    return f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)


def test_pinned_experts_stay(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter, pinned_share=0.3, evict_half_life=1e-3)) as engine:
        pinned = [set(np.flatnonzero(slots >= 0)) for slots in engine.state.slot_of[: len(engine.layers)]]
        engine.measure(JUDGE)
        for stream, stay in zip(engine.layers, pinned, strict=True):
            assert stay <= set(np.flatnonzero(engine.state.slot_of[stream.number] >= 0))
    assert all(len(stay) in (1, 2) for stay in pinned)


def test_the_shape_moves_cache_between_layers(path: Path, quarter: float) -> None:
    def slots(shape: float) -> list[int]:
        with load(path, Knobs(cache_gb=quarter, cache_layer_shape=shape)) as engine:
            return [bank.slots for stream in engine.layers for bank in stream.cache.pools]

    early, even, late = slots(0.5), slots(0), slots(-0.5)
    assert early[0] > even[0] >= late[0] and early[-1] <= even[-1] < late[-1]
    assert sum(early) == sum(even) == sum(late)


def test_threads_are_started(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter, read_threads=3)) as engine:
        engine.logits([1, 2, 3])
        assert engine.state is not None and engine.state.reader.native.threads == 3


def test_the_cache_never_grows_beyond_its_size(path: Path, quarter: float) -> None:
    with load(path, Knobs(cache_gb=quarter)) as engine:
        pools = [pool for layer in engine.layers for pool in layer.cache.pools]
        held = sum(value.nbytes for pool in pools for _, value in tree_flatten(pool.inner.parameters()))
        assert 0.9 * quarter * 1e9 < held <= quarter * 1e9


@pytest.mark.parametrize("family", ["kimi_k2", "qwen3_moe", "mixtral", "nemotron_h"])
def test_what_is_possible_is_what_loading_accepts(family: str, checkpoint: Callable[..., Path]) -> None:
    path = checkpoint(family)
    found = possible(Checkpoint.open(path))
    assert found.windows == found.prefetch == ""
    cache_gb = footprint(path).one_token_gb * 1.1
    load(path, Knobs(cache_gb=cache_gb, sync_window=0)).close()
    load(path, Knobs(cache_gb=cache_gb, prefetch="stale_gate", prefetch_width=found.widest)).close()


def test_what_a_model_refuses_has_a_reason(tmp_path: Path) -> None:
    found = possible(Checkpoint.open(make(tmp_path / "m", "hunyuan", config=configuration("hunyuan"))))
    assert found.windows == "sync_window is not possible for this model: DecoderLayer is not in a plain chain"
    assert found.prefetch == "no router of hunyuan can be run ahead of time" and found.widest == 1


def test_slots_are_filled_while_the_resident_weights_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reads end although the main thread is still at the resident weights. All logits stay those of the plain model."""
    plain = load(path).logits([1, 2, 3])
    whole = 1.1 * footprint(path).all_experts_gb
    seen: list[bool] = []

    def slowly(model: Any, source: Checkpoint, bits: int | None) -> None:
        deadline = time.monotonic() + 60
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        read_resident(model, source, bits)

    def filled(self: PoolRequests, *given: Any) -> None:
        fill(self, *given)
        seen.append(threading.current_thread() is not threading.main_thread())

    fill = PoolRequests.fill
    monkeypatch.setattr(PoolRequests, "fill", filled)
    monkeypatch.setattr("engine.engine.read_resident", slowly)
    with load(path, Knobs(cache_gb=whole)) as engine:
        assert seen and all(seen) and all(layer.complete for layer in engine.layers)
        assert engine.stats.bytes_read == engine.stats.io_ms == 0
        assert np.array_equal(engine.logits([1, 2, 3]), plain)


@pytest.mark.parametrize("end", ["resident", "experts"])
def test_an_error_of_either_end_ends_the_other(path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """The error is the one that happened, the reader is closed, and no thread goes on."""
    states: list[Reader] = []
    closed: list[Reader] = []
    began, make_state, close = threading.Event(), decode_state_for, Reader.close

    def kept(source: Checkpoint, knobs: Knobs) -> DecodeState:
        state = make_state(source, knobs)
        states.append(state.reader)
        return state

    def closing(self: Reader) -> None:
        closed.append(self)
        close(self)

    def resident(*_: object) -> None:
        began.wait(60)
        if end == "resident":
            raise CheckpointError("the head cannot be read")

    def fill(self: PoolRequests, experts: np.ndarray, ended: Callable[[], bool] = bool) -> None:
        began.set()
        if end == "experts":
            raise ReadError("expert 3 could not be read")
        while not ended():
            time.sleep(0.01)

    monkeypatch.setattr(Reader, "close", closing)
    monkeypatch.setattr("engine.engine.decode_state_for", kept)
    monkeypatch.setattr("engine.engine.read_resident", resident)
    monkeypatch.setattr(PoolRequests, "fill", fill)
    wanted = (CheckpointError, "the head") if end == "resident" else (ReadError, "expert 3")
    with pytest.raises(wanted[0], match=wanted[1]):
        load(path, Knobs(cache_gb=1.1 * footprint(path).all_experts_gb))
    assert "fill" not in [thread.name for thread in threading.enumerate()]
    assert closed == states
