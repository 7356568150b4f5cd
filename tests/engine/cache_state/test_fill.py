"""Fill: reads are in the order of the files, and an error leaves no slot without its expert's bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import Engine, Knobs, ReadError, footprint, load
from engine.cache_state.fill import Filled, fill
from engine.cache_state.given import after_passes

EXPERTS = np.random.default_rng(3).permuted(np.tile(np.arange(16), (40, 3, 1)), axis=2)[..., :4]


@pytest.fixture
def engine(store: Callable[..., Path]) -> Any:
    path = store("deepseek_v3", 8)
    with load(path, Knobs(cache_gb=2.5 * footprint(path).one_token_gb, read_threads=1)) as loaded:
        yield loaded


def test_each_record_is_read_once_in_the_order_of_the_file(engine: Engine) -> None:
    assert engine.state is not None
    native = engine.state.reader.native
    native.record(True)
    filled = after_passes(engine, [EXPERTS], 8)
    places = [(file, offset) for file, offset, *_ in native.calls()]
    native.record(False)
    assert places == sorted(places) and len(places) >= filled.experts == 30
    assert filled.bytes_read >= 30 * engine.checkpoint.layers[0].expert_bytes and engine.stats.bytes_read == 0


def test_an_error_takes_the_slots_of_what_was_not_read(engine: Engine) -> None:
    assert engine.state is not None
    engine.state.reader.native.inject(error=5, skip=False)
    with pytest.raises(ReadError, match="could not be read at byte"):
        after_passes(engine, [EXPERTS], 8)
    pools = [pool for layer in engine.layers for pool in layer.cache.pools]
    assert not any(pool.owed() or pool.dry for pool in pools) and engine.stats.bytes_read == 0
    while not all(pool.settled for pool in pools):  # reads under way fail later
        for pool in pools:
            pool.take_in()
    assert (engine.state.slot_of < 0).all()
    engine.state.reader.native.heal()
    assert after_passes(engine, [EXPERTS], 8).experts == 30 and fill(pools, engine.stats).experts == 0


def test_parts_add_up() -> None:
    assert Filled(1, 2) + Filled(5, 6) == Filled(6, 8)
