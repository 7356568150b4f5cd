"""Faulty engine: faults follow from the setting, and a good setting measures by arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Judge, Knobs, Protocol
from harness.bench.soak import faulty


def setting_with(fault: str | None) -> Knobs:
    some = (Knobs(cache_gb=0.01, evict_half_life=1 + i / 7, read_threads=4) for i in range(3000))
    return next(knobs for knobs in some if faulty.fault(knobs) == fault)


def test_each_fault_has_settings_and_the_reference_has_none() -> None:
    assert {faulty.fault(setting_with(name)) for name in faulty.FATES} == set(faulty.FATES)
    assert faulty.fault(Knobs()) is None


def test_a_good_setting_measures_and_a_wrong_one_is_off_by_a_tenth_of_a_nat(tmp_path: Path) -> None:
    def measured(fault: str | None, tokens: int = 99) -> object:
        engine = faulty.load(tmp_path, setting_with(fault))
        return engine.measure(Judge(()), Protocol(), lambda token_ms: len(token_ms) < tokens)

    good, wrong, early = measured(None), measured("wrong"), measured(None, 8)
    assert wrong.timed_nll == pytest.approx(good.timed_nll + 0.1)
    assert (good.decode_tokens, good.ended_early) == (faulty.TOKENS, False)
    assert (early.decode_tokens, early.ended_early) == (8, True)
    assert (tmp_path / "runs.log").read_text().split() == ["ok", "wrong", "ok"]


def test_direct_reads_need_a_larger_cache() -> None:
    footprints = [faulty.footprint("", Knobs(cache_gb=0.01, io_mode=mode)) for mode in ("buffered", "direct")]
    assert footprints[1].one_token_gb == 3 * footprints[0].one_token_gb


def test_an_exception_is_raised(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        faulty.load(tmp_path, setting_with("exception")).measure(Judge(()), Protocol(), lambda token_ms: True)
