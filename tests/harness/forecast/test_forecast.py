"""Tests of a forecast's parts: sizes, what fits, times of prompts and trials."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.forecast.forecast import Forecast, forecast, text_tokens
from harness.forecast.locality import worlds_of
from harness.forecast.machine.figures import device_from, machine
from harness.forecast.machine.layer import LayerTime
from harness.forecast.target import target

MODEL = target("deepseek_v4_flash")  # has sizes only, so that nothing is built


def made(device: str, **figures: str) -> Forecast:
    words = {"device": device} | {f"device.{name}": value for name, value in figures.items()}
    found = machine(device_from(words), MODEL, Path())
    return forecast(MODEL, found, worlds_of(MODEL.experts, MODEL.top_k))


def test_larger_caches_read_less_and_are_faster() -> None:
    found = made("m2max_96gb")
    rows = [row for row in found.rows if row.bits == 4]
    assert [row.read_gb for row in rows] == sorted((row.read_gb for row in rows), reverse=True)
    assert [row.tok_s.middle for row in rows] == sorted(row.tok_s.middle for row in rows)
    assert found.best is rows[-1] and found.best.fits and found.best.memory_gb <= found.limit_gb * 1.000001
    assert sum(found.parts_gb.values()) == pytest.approx(found.best.memory_gb)


def test_everything_in_memory_reads_nothing() -> None:
    best = made("m3ultra_512gb", disk_gbps="5").best
    assert best.cached_share == 1 and best.read_gb == 0 and best.limit == "compute"
    assert max(best.tok_s.shares["locality"], best.tok_s.shares["disk"]) < 1e-9


def test_a_faster_disk_makes_a_faster_forecast_and_more_trials() -> None:
    slow, fast = made("m2max_96gb", disk_gbps="1"), made("m2max_96gb", disk_gbps="10")
    assert fast.best.tok_s.middle > 3 * slow.best.tok_s.middle and fast.trials > slow.trials
    assert fast.ttft_s[512] < slow.ttft_s[512] < slow.ttft_s[8192] and slow.ttft_is_least


def test_a_probed_machine_counts_the_arithmetic_of_a_prompt() -> None:
    found = machine(device_from({"device": "m2max_96gb"}), MODEL, Path())
    worlds = worlds_of(MODEL.experts, MODEL.top_k)
    with_time = dataclasses.replace(found, probed=LayerTime(1, 1, 10, 0.1))
    assert forecast(MODEL, with_time, worlds).ttft_s[8192] > forecast(MODEL, found, worlds).ttft_s[8192]


def test_the_evaluation_texts_have_tokens() -> None:
    assert len(text_tokens()) > 5 and all(prompt > 10 and after > 5 for prompt, after in text_tokens())


def test_an_own_trace_of_other_texts_makes_the_interval_wider() -> None:
    found = machine(device_from({"device": "m2max_96gb"}), MODEL, Path())
    whole = worlds_of(MODEL.experts, MODEL.top_k)
    same = dataclasses.replace(whole, names=whole.names[:1], recordings=whole.recordings[:1])
    narrow, wide = (forecast(MODEL, found, dataclasses.replace(same, missed_sd=sd)).best.tok_s for sd in (0.0, 0.3))
    assert narrow.shares["locality"] == 0 < wide.shares["locality"] and wide.low < narrow.low < narrow.middle == wide.middle
