"""cold_lowbit: what a token gives little weight comes in at a store's lowest level, and is raised when it is given more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from tiny import make

from engine import Engine, KnobError, Knobs, footprint, load
from engine.cache.slots import Bank
from engine.checkpoint.checkpoint import Checkpoint
from engine.disk.reader import Piece
from engine.packing.pack import pack_store
from engine.streaming.layer import LayerStream

TOKENS = np.random.default_rng(5).integers(0, 255, 40)
FAMILIES = {"deepseek_v3": 4, "qwen3_moe": 4, "gpt_oss": "mxfp4", "olmoe": 8}


@pytest.fixture(scope="module", params=FAMILIES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    pack_store(make(folder / "model", request.param, bits=FAMILIES[request.param]), folder / "store")
    return folder / "store"


def small(store: Path, **knobs: Any) -> Knobs:
    """A cache of less than half of the experts."""
    sizes = footprint(store, Knobs(cache_gb=1, cold_lowbit=1.0))
    return Knobs(cache_gb=max(1.1 * sizes.one_token_gb, 0.4 * sizes.all_experts_gb), **knobs)


def levels_of(store: Path) -> tuple[int, ...]:
    levels = Checkpoint.open(store).levels
    assert levels is not None
    return levels


def decoded(engine: Engine, prefill: int = 8) -> np.ndarray:
    """Logits of a short prefill and of what follows token by token."""
    cache = make_prompt_cache(engine.model)
    parts = [np.array(p) for p in engine.forward.prefill(TOKENS[:prefill].tolist(), cache)]
    return np.concatenate([*parts, *(np.array(engine.forward.decode(int(t), cache)) for t in TOKENS[prefill:])])


def test_neutral_values_leave_the_logits_identical(store: Path) -> None:
    with load(store, small(store)) as engine:
        expected = decoded(engine)
    for limit in (0.0, 1e-9):
        with load(store, small(store, cold_lowbit=limit)) as engine:
            assert np.array_equal(decoded(engine), expected)
            assert engine.stats.lowbit == engine.stats.raised == 0


def test_every_level_is_as_the_rule_says_and_computed_at_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's output is compared with whole models at each level, by a rule written down a second time."""
    limit = 1.2
    own, seen = LayerStream._choose_levels, {"low": 0, "raised": 0}
    compute = LayerStream._asked_for
    wanted: dict[int, dict[int, int]] = {}
    with load(store) as high, load(store, Knobs(expert_bits=levels_of(store)[0])) as low:

        def choose(self: LayerStream, ids: np.ndarray, weights: np.ndarray) -> None:
            most: dict[int, float] = {}
            for token, given in zip(ids.tolist(), weights.tolist(), strict=True):
                for rank, expert in enumerate(token):
                    share = np.inf if given[rank] == max(given) else given[rank] / sum(given)
                    most[expert] = max(most.get(expert, 0.0), share)
            plan = {}
            for expert, share in most.items():
                cached, at = self._slot_of[expert] >= 0, int(self._bank_of[expert])
                heavy = share >= limit / ids.shape[1]
                plan[expert] = 0 if heavy or (cached and at == 0) else 1
                seen["raised"] += cached and at == 1 and heavy
            wanted[self.number] = plan
            own(self, ids, weights)

        def check(self: LayerStream, x: mx.array, ids: np.ndarray, foretellings: Any) -> mx.array:
            y = compute(self, x, ids, foretellings)
            plan = wanted.pop(self.number, None)
            if plan is not None:
                at = np.vectorize(plan.__getitem__)(ids)
                both = [e.streams[self.number].banks[0].inner(x, mx.array(ids)) for e in (high, low)]
                expected = mx.where(mx.array(at == 1)[..., None], both[1], both[0])
                assert mx.allclose(y, expected, atol=1e-5).item()
                seen["low"] += int((at == 1).sum())
            return y

        monkeypatch.setattr(LayerStream, "_choose_levels", choose)
        monkeypatch.setattr(LayerStream, "_asked_for", check)
        with load(store, small(store, cold_lowbit=limit)) as engine:
            decoded(engine)
            assert engine.stats.lowbit == seen["low"] > 20 and engine.stats.raised == seen["raised"] > 5


def test_a_raise_reads_the_rest_alone_and_gives_the_whole(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, rests = Bank._queue, []

    def queued(self: Bank, expert: int, slot: int, reader: Any, *, speculative: bool, upper: Any = None) -> None:
        submit = reader.submit

        def counted(pieces: list[Piece], *args: Any, **kwargs: Any) -> Any:
            if upper:
                there = sum(map(len, upper.values()))
                rests.append(sum(len(p.into) for p in pieces) == self.layer.expert_bytes - there)
            return submit(pieces, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(reader, "submit", counted)
            queue(self, expert, slot, reader, speculative=speculative, upper=upper or {})

    monkeypatch.setattr(Bank, "_queue", queued)
    with (
        load(store) as high,
        load(store, Knobs(expert_bits=levels_of(store)[0])) as low,
        load(store, small(store, cold_lowbit=1.2)) as engine,
    ):
        decoded(engine)
        checked = [0, 0]
        for stream in engine.streams:
            for number, (bank, whole) in enumerate(zip(stream.banks, (high, low), strict=True)):
                other = whole.streams[stream.number]
                for expert in np.flatnonzero((stream._slot_of >= 0) & (stream._bank_of == number)):
                    for name, array in bank._arrays.items():
                        theirs = other.banks[0]._arrays[name].memory[other._slot_of[expert]]
                        assert np.array_equal(array.memory[stream._slot_of[expert]], theirs), (expert, name)
                    checked[number] += 1
    assert min(checked) > 0 and len(rests) > 5 and all(rests)


def test_runs_repeat(store: Path) -> None:
    knobs = {"cold_lowbit": 1.0, "cold_drop": 0.5, "prefetch": "stale_gate", "read_threads": 16}
    out = []
    for _ in range(2):
        with load(store, small(store, **knobs)) as engine:
            out.append(decoded(engine))
    assert np.array_equal(*out)


def test_it_moves_bytes_and_logits(store: Path) -> None:
    with load(store, small(store)) as engine:
        plain, read = decoded(engine), engine.stats.bytes_read
    with load(store, small(store, cold_lowbit=1.5)) as engine:
        assert not np.array_equal(decoded(engine), plain) and engine.stats.bytes_read < read


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"cold_lowbit": 2.0}, "outside 0 .. 1.5"),
        ({"lowbit_share": 0.5}, "no effect without cold_lowbit"),
        ({"cold_lowbit": 0.5, "cold_drop": 0.5}, "set cold_lowbit above cold_drop"),
        ({"cold_lowbit": 1.0, "cold_bits": 2}, "leave one of the two unset"),
        ({"cold_lowbit": 1.0, "sync_window": 0}, "set sync_window=1"),
        ({"cold_lowbit": 1.0, "expert_bits": 2}, "is its lowest level"),
    ],
)
def test_what_has_no_effect_is_refused(tmp_path_factory: pytest.TempPathFactory, knobs: Any, message: str) -> None:
    folder = tmp_path_factory.mktemp("refused")
    pack_store(make(folder / "model", "qwen3_moe", bits=4), folder / "store")
    with pytest.raises(KnobError, match=message):
        load(folder / "store", Knobs.from_mapping({"cache_gb": 3e-4, **knobs}))
    if message == "is its lowest level":
        with pytest.raises(KnobError, match="is no packed store"):
            load(folder / "model", Knobs(cache_gb=3e-4, cold_lowbit=1.0))
        everything = footprint(folder / "store").all_experts_gb
        with pytest.raises(KnobError, match="holds every expert"):
            load(folder / "store", Knobs(cache_gb=3 * everything, cold_lowbit=1.0))


def test_every_call_begins_with_the_cache_as_loaded(store: Path) -> None:
    with load(store, small(store, cold_lowbit=1.0, prefetch="stale_gate")) as engine:
        first, second = engine.logits(TOKENS), engine.logits(TOKENS)
    assert np.array_equal(first, second)


def test_lowbit_share_moves_slots_between_the_levels(store: Path) -> None:
    cache_gb = 0.9 * footprint(store).all_experts_gb
    slots = []
    for share in (0.0, 0.9):
        with load(store, Knobs(cache_gb=cache_gb, cold_lowbit=1.0, lowbit_share=share)) as engine:
            slots.append([sum(stream.banks[number].table.slots for stream in engine.streams) for number in (0, 1)])
    assert slots[0][0] > slots[1][0] and slots[0][1] < slots[1][1]
