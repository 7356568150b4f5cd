"""Tests of a rehearsal's forecasts: the bytes are exact, settings that ran are learned from, and none with one line why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rehearsals import write
from traces import routing, write_trace

from engine.bench.decoding.rehearse import measure
from engine.bench.machine import plain_reads
from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.knobs import Knobs
from engine.plan.footprint import weights_of
from harness.forecast.study.fit import Figures
from harness.rehearse import forecasts as module
from harness.rehearse.forecasts import Forecasts

DISK_GBPS = 0.01
OPTIONS: dict[str, Any] = {
    "trace": None, "locality": None, "window_recall": None, "rounds": 2, "tokens": 12, "warm_up": 4,
}  # fmt: skip
Cached = Callable[[float], Knobs]


@pytest.fixture(autouse=True)
def _probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe", lambda *_: Figures(10.0, 0.25, 0.0, 0.0, 0.5, DISK_GBPS))
    monkeypatch.setattr(plain_reads, "PLAIN_MIB", 1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write(tmp_path_factory.mktemp("rehearsal") / "r"))


@pytest.fixture
def cached(source: Checkpoint) -> Cached:
    whole = weights_of(source, Knobs())
    return lambda share: Knobs(cache_gb=share * whole.all_experts_gb, io_mode="direct")


@pytest.mark.parametrize("other", ["", "locality", "trace"])
def test_the_bytes_are_those_that_the_rehearsal_reads(
    other: str, source: Checkpoint, cached: Cached, tmp_path: Path
) -> None:
    options = dict(OPTIONS)
    if other == "locality":
        options[other] = {"popularity": 0.0, "topic": 0.0, "topic_tokens": 9.0, "phrase": 0.0}
    if other == "trace":
        options[other] = str(write_trace(tmp_path / "t.parquet", routing(40, 2, 4, 16)))
    knobs = cached(0.5)
    forecasts = Forecasts(source, [knobs], options, print)
    assert forecasts.before(knobs) is not None
    forecasts.after(knobs, 10.0)
    read_gb = measure({"store": str(source.path), "knobs": knobs.as_dict(), **options})["read_gb"]
    (features,) = forecasts._features
    assert features.io_ms * DISK_GBPS / 1000 == pytest.approx(sum(read_gb) / 2, rel=1e-9)


def test_settings_that_ran_are_learned_from(source: Checkpoint, cached: Cached) -> None:
    forecasts = Forecasts(source, [cached(0.75), cached(0.5)], OPTIONS, print)
    large, small = forecasts.before(cached(0.75)), forecasts.before(cached(0.5))
    assert large is not None and small is not None
    assert 100 > large.tok_s > small.tok_s > small.low > 0
    forecasts.after(cached(0.75), large.tok_s / 2)
    later = forecasts.before(cached(0.5))
    assert later is not None and later.tok_s < 0.8 * small.tok_s
    assert later.high / later.low < small.high / small.low


def test_one_line_says_why_there_is_none(source: Checkpoint, cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def fails(*_: Any) -> Any:
        raise HeadraceError("no layer")

    monkeypatch.setattr(module, "probe", fails)
    forecasts = Forecasts(source, [cached(0.5)], OPTIONS, lines.append)
    assert forecasts.before(cached(0.5)) is None and lines == ["no forecast: no layer"]
