"""Tests of one setting of a rehearsal: its bytes are those of its misses, and routing can be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rehearsals import write
from stores import one_line
from traces import routing, write_trace

from engine import HeadraceError, Knobs, footprint
from engine.bench.decoding.rehearse import measure
from engine.bench.machine import plain_reads
from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import GB

OPTIONS: dict[str, Any] = {
    "trace": None, "locality": None, "window_recall": None, "rounds": 2, "tokens": 12, "warm_up": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_reads, "PLAIN_MIB", 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("rehearsal") / "r")


def request(store: Path, **more: Any) -> dict[str, Any]:
    knobs = Knobs(cache_gb=footprint(store).all_experts_gb / 2, io_mode="direct")
    return {"store": str(store), "knobs": knobs.as_dict(), **OPTIONS, **more}


def test_bytes_are_those_of_the_misses(store: Path) -> None:
    found = measure(request(store))
    source = Checkpoint.open(store)
    misses = 5 * 4 * (1 - found["hit_rate"][0])  # layers, top-k
    assert found["missing_gb"][0] == pytest.approx(misses * source.layers[0].expert_bytes / GB)
    assert found["read_gb"][0] >= found["missing_gb"][0] > 0, "direct reads are of whole pages"
    assert (
        len(found["tok_s"]) == len(found["held_s"]) == 2 and found["tokens"] == 12 and found["cached"] == pytest.approx(0.5)
    )
    assert found["mode"].endswith("rehearsal: random weights") and found["mapped"] == ""
    assert found["peak_memory_gb"] > 0 and found["predicted_peak_gb"] > 0


def test_another_locality_and_a_trace(store: Path, tmp_path: Path) -> None:
    none = {"popularity": 0.0, "topic": 0.0, "topic_tokens": 9.0, "phrase": 0.0}
    chance = measure(request(store, locality=none, rounds=1))["hit_rate"][0]
    assert chance < measure(request(store, rounds=1))["hit_rate"][0]
    trace = write_trace(tmp_path / "t.parquet", routing(40, 2, 4, 16))
    assert measure(request(store, trace=str(trace), rounds=1))["mapped"] == "2 recorded layers for 5"


def test_what_is_no_rehearsal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="is no rehearsal; write one with headrace rehearse") as e:
        measure({"store": str(tmp_path), "knobs": {}, **OPTIONS})
    one_line(e)
