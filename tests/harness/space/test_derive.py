"""Derivation: on fake machines and tiny checkpoints, every bound is possible and every knob offered has an effect."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Checkpoint, Knobs
from engine.effective import effective
from engine.knobs import GB
from engine.packing.pack import pack_store
from engine.plan import banks
from engine.plan import footprint as plan
from engine.plan.memory import activations, staging
from engine.plan.reads import largest_range
from harness import ConfigError
from harness.space.derive import Host, Sizes, derive
from harness.space.parse import space_from_config
from harness.space.space import Space

Make = Callable[..., Path]
MACHINES = {
    "Mac with 8 GB": Host(5.7, 8, "metal"),
    "Ultra with 512 GB": Host(412.0, 32, "metal"),
    "Linux, 24 GB": Host(21.6, 2, "cpu"),
    "H200": Host(126.0, 16, "cuda"),
}
MODELS = {
    "bf16": lambda make, place: make("qwen3_moe"),
    "quantized": lambda make, place: make("kimi_k2", 4),
    "store": lambda make, place: _packed(make("kimi_k2", 4), place),
    "store of three": lambda make, place: _packed(make("olmoe"), place, (2, 4, 8)),
}


def _packed(source: Path, place: Path, levels: tuple[int, ...] | None = None) -> Path:
    pack_store(source, place / "store", levels)
    return place / "store"


@pytest.fixture
def sizes_of(checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Host], Sizes]:
    """The sizes of a model as they are on a machine: the engine's own footprint with that machine's backend."""

    def sizes(model: str, host: Host) -> Sizes:
        source = Checkpoint.open(MODELS[model](checkpoint, tmp_path))
        of_backend = lambda: host.backend  # noqa: E731
        for module in (plan, staging, activations):
            if hasattr(module, "backend"):
                monkeypatch.setattr(module, "backend", of_backend)
        monkeypatch.setattr("engine.model.buffer_cache.backend", of_backend)
        monkeypatch.setattr("engine.plan.memory.process.process_bytes", lambda: 100_000_000)
        monkeypatch.setattr(plan, "usable_memory_bytes", lambda: round(host.limit_gb * GB))
        if host.backend != "cpu":
            for module in (plan, banks, staging, activations):
                monkeypatch.setattr(module, "compute_dtype", lambda: None)
        activations._KNOWN.clear()
        monkeypatch.setattr(activations, "known_pass", lambda *args: None)
        footprint = functools.cache(lambda knobs: plan.footprint(source, knobs))
        return Sizes(model, footprint, largest_range(source) / 1024)

    return sizes


def settings(space: Space, count: int = 24) -> Iterator[dict[str, Any]]:
    """Settings at both ends of the cache: all other knobs at their first and last values, and at random ends."""
    rng = random.Random(0)
    cache = space.entry("cache_gb")
    for number in range(count):
        values: dict[str, Any] = {}
        for e in space.entries:
            if e.exists(values):
                ends = list(e.values) or [e.decode(e.low), e.decode(e.high)]
                values[e.name] = ends[0] if number == 0 else ends[-1] if number == 1 else rng.choice(ends)
        yield {**values, "cache_gb": cache.low}
        yield {**values, "cache_gb": cache.high}


@pytest.mark.parametrize(
    ("model", "machine"),
    [
        *((model, "Linux, 24 GB") for model in MODELS),
        *(("store", machine) for machine in ("Mac with 8 GB", "H200")),
        ("bf16", "Mac with 8 GB"),
        ("quantized", "Ultra with 512 GB"),
    ],
)
def test_every_bound_is_possible_and_every_knob_has_an_effect(model: str, machine: str, sizes_of: Any) -> None:
    host = MACHINES[machine]
    sizes = sizes_of(model, host)
    whole = sizes.footprint(Knobs())
    least = sizes.footprint(Knobs(cache_gb=whole.one_token_gb)).predicted_peak_gb
    for limit_gb in (least + 0.5 * (whole.all_experts_gb - whole.one_token_gb), host.limit_gb):
        tight = dataclasses.replace(host, limit_gb=limit_gb)
        derived = derive(sizes, tight, {})
        space = dataclasses.replace(space_from_config(derived.space, {}), footprint=sizes.footprint)
        cache = space.entry("cache_gb")
        assert cache.low < cache.high <= whole.all_experts_gb
        for values in settings(space):
            live = effective(values, sizes.footprint)
            need = sizes.footprint(Knobs.from_mapping(live))
            assert need.one_token_gb <= live["cache_gb"], values
            assert need.predicted_peak_gb <= limit_gb, (values, need)
        _assert_effects(space, sizes)
        assert set(Knobs.names()) == {*(name for name in derived.left_out if "=" not in name), *derived.space}
        assert all(derived.left_out.values()) and set(derived.decided) <= set(derived.left_out)
    assert ("sync_window" in derived.space) == (host.backend != "cpu")
    assert ("gpu_keep_warm" in derived.space) == (host.backend == "metal")
    assert ("expert_bits" in derived.space) == model.startswith("store")


def _assert_effects(space: Space, sizes: Sizes) -> None:
    """Each value of each knob makes a setting of its own, where its conditions hold."""
    middle = (space.entry("cache_gb").low * space.entry("cache_gb").high) ** 0.5
    for entry in space.entries:
        given = {"cache_gb": middle, **{parent: legal[0] for parent, legal in entry.when if legal[0] is not None}}
        for parent, legal in dict(space.entry("prefetch").when).items() if dict(entry.when).get("prefetch") else ():
            given[parent] = legal[0]
        values = entry.values or (entry.decode(entry.low), entry.decode(entry.high))
        made = {str(sorted(effective({**given, entry.name: v}, sizes.footprint).items(), key=str)) for v in values}
        plain = effective({k: v for k, v in given.items() if k != entry.name}, sizes.footprint)
        same = [v for v in values if effective({**given, entry.name: v}, sizes.footprint) == plain]
        assert len(made) == len(values), (entry, made)
        assert len(same) <= 1, (entry, same)


def test_a_store_offers_its_levels(sizes_of: Any) -> None:
    host = MACHINES["Linux, 24 GB"]
    two = derive(sizes_of("store", host), host, {}).space
    assert two["expert_bits"]["values"] == [2, None] and two["cold_bits"]["values"] == [2, None]
    assert two["cold_bits"]["when"] == {"expert_bits": [None]} and two["hot_share"]["when"] == {"cold_bits": [2]}


def test_a_checkpoint_that_is_not_packed_says_why(sizes_of: Any) -> None:
    host = MACHINES["H200"]
    found = derive(sizes_of("quantized", host), host, {})
    line = next(line for line in found.lines() if "expert_bits" in line)
    assert line == (
        "left out: expert_bits, cold_bits, hot_share: quantized is not packed, with experts of 4 bits: fewer bits would "
        "read each expert whole and quantize it again at every load"
    )
    assert found.space["sync_window"] == {"type": "ordinal", "values": [1, 2, 4, "all"]}
    assert found.space["prefetch"]["when"] == {"sync_window": 1}


# With figures of a model of 1 T parameters, which no test can make.


def fake(**figures: Any) -> Sizes:
    """60 layers of 384 experts of 24.8 MB; 12 GB besides them."""
    own = {"moe_layers": 60, "experts": 60 * 384, "top_k": 8, "expert_bits": 4, "levels": (), "backend": "metal", **figures}

    def footprint(knobs: Knobs) -> Any:
        bits = knobs.expert_bits or 4
        share = bits / 4 if knobs.cold_bits is None else bits / 4 + knobs.cold_bits / 4
        token = own.get("one_token_gb", 11.9) * share
        whole = own.get("all_experts_gb", 571.4) * bits / 4
        rest = own.get("rest_gb", 12.0) - (0 if knobs.resident_bits is None else 6.0)
        cached = whole if knobs.cache_gb is None else knobs.cache_gb
        sized = {"one_token_gb": token, "all_experts_gb": whole, "resident_gb": rest, "predicted_peak_gb": rest + cached}
        return SimpleNamespace(**{**own, **sized})

    return Sizes("Kimi", footprint, 7340.0)


def test_a_large_model_on_a_laptop() -> None:
    found = derive(fake(), Host(77.3, 12, "metal"), {})
    assert found.space["cache_gb"] == {"type": "float", "low": 11.9, "high": 65.3, "log": True}
    assert found.space["sync_window"]["values"] == [1, 4, 15, 30, "all"]
    assert found.space["read_block_kib"]["values"] == [256, 512, 1024, 2048, 4096, 8192]
    assert found.space["read_threads"]["values"] == [1, 2, 4, 8, 16]
    assert found.space["prefetch_width"]["high"] == 2 and found.space["prefetch_depth"]["high"] == 4


def test_a_store_that_fits_with_some_of_its_levels_only() -> None:
    store = fake(levels=(2, 4))
    both = derive(store, Host(40, 12, "metal"), {}).space
    assert both["cache_gb"]["low"] == pytest.approx(17.85) and "cold_bits" in both
    one = derive(store, Host(27, 12, "metal"), {})
    assert one.space["cache_gb"]["low"] == 11.9 and "cold_bits" not in one.space
    assert "one token needs slots of both widths" in one.left_out["cold_bits"]
    lowest = derive(store, Host(20, 12, "metal"), {})
    assert lowest.space["expert_bits"] == 2 and lowest.space["cache_gb"]["high"] <= 8
    assert lowest.left_out["cold_bits"] == "4 bits do not fit"


def test_a_narrow_range_costs_no_other_knob() -> None:
    found = derive(fake(), Host(25, 12, "metal"), {}).space
    assert found["cache_gb"]["high"] == 13 and len(found["read_threads"]["values"]) == 5 and "read_block_kib" in found


def test_a_model_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ConfigError) as e:
        derive(fake(), Host(21, 8, "metal"), {})
    assert str(e.value) == (
        "Kimi does not fit into 21 GB, the limit of this machine: it needs 23.9 GB or more, 12 of them besides the experts "
        "and 11.9 for one token's experts; knobs.resident_bits=8 lowers that to 17.9 GB"
    )
    with pytest.raises(
        ConfigError, match=r"does not fit into 5.7 GB, the limit of device=m1_8gb: .*use a smaller model, a s"
    ):
        derive(fake(), Host(5.7, 8, "metal", named="device=m1_8gb"), {})


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"one_token_gb": 0.0}, "search_space=auto needs sizes, and the engine predicts none for Kimi; give search_space=F"),
        ({"one_token_gb": 9.0, "all_experts_gb": 9.0}, "uses all its experts for every token, so there is nothing to cache"),
    ],
)
def test_a_model_without_sizes_or_choice_is_refused(figures: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        derive(fake(**figures), Host(77, 8, "metal"), {})


def test_what_the_model_and_the_disk_cannot_do_is_left_out() -> None:
    sizes = dataclasses.replace(fake(), no_window="not a plain chain", no_prefetch="no router", largest_read_kib=2.5)
    found = derive(sizes, Host(77, 8, "cuda", "no direct reads here"), {})
    assert not {"sync_window", "prefetch", "prefetch_depth", "io_mode", "read_block_kib"} & set(found.space)
    assert found.left_out["io_mode"] == "no direct reads here" and found.left_out["prefetch_width"] == "no router"
    assert found.left_out["read_block_kib"] == "the longest read of an expert has 2.5 KiB: one block"
    assert "left out: sync_window: not a plain chain" in found.lines()
    narrow = derive(dataclasses.replace(fake(), widest=1.0), Host(77, 8, "cuda"), {})
    assert "cannot rank more than its own 8" in narrow.left_out["prefetch_width"]
    one = derive(fake(moe_layers=1, experts=384), Host(77, 8, "cuda"), {})
    assert one.left_out["sync_window"] == one.left_out["prefetch"] == "the model has one layer of experts"
    two = derive(fake(moe_layers=2, experts=768), Host(77, 8, "cuda"), {})
    assert "prefetch_depth" in two.left_out and two.space["sync_window"]["values"] == [1, "all"]


def test_a_foreign_engine_that_tells_three_sizes() -> None:
    def footprint(knobs: Knobs) -> Any:
        return SimpleNamespace(one_token_gb=1.0, all_experts_gb=10.0, predicted_peak_gb=2 + (knobs.cache_gb or 10.0))

    found = derive(Sizes("other", footprint), Host(8, 4), {})
    assert found.space["cache_gb"]["high"] == 6 and "not known whether a sync costs" in found.left_out["sync_window"]


def test_knobs_outside_the_space_are_not_derived() -> None:
    found = derive(fake(), Host(77.3, 12, "metal"), {"io_mode": "direct", "resident_bits": 4, "ssd_gbps": 1.0})
    assert "io_mode" not in {*found.space, *found.left_out}
    assert found.space["cache_gb"]["high"] == pytest.approx(71.3)
    assert "cache_gb" not in derive(fake(), Host(77.3, 12, "metal"), {"cache_gb": 20.0}).space
