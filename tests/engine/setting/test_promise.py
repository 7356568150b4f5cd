"""Promise: speeds agree within the noise of a run, quality to the last digit, and other texts are not compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.measure.measurement import Measurement
from engine.setting.promise import as_dict, compare, summary, table
from engine.setting.setting_file import Setting

SPEED = {"value": 40.0, "low": 36.0, "high": 44.444, "noise": 0.2}
SETTING = Setting(
    "fastest", {}, eval_texts={"fingerprint": "a" * 16},
    measured={
        "decode_tok_s": SPEED, "peak_memory_gb": {"value": 10.0, "low": 9.9, "high": 10.1, "noise": 0.01},
        "perplexity": {"value": 17.0}, "kl": {"value": 0.1},
    },
)  # fmt: skip
MEASURED = Measurement(41.0, 10.05, 17.0, eval_fingerprint="a" * 16)


def test_equal_figures_agree() -> None:
    found = compare(SETTING, MEASURED)
    assert list(found) == ["decode_tok_s", "peak_memory_gb", "perplexity"], "kl was not measured"
    assert all(c.agrees for c in found.values())
    assert found["perplexity"].verdict == "equal" and found["decode_tok_s"].verdict == "agrees"
    assert summary(found) == "3 of 3 figures agree with the study's"
    speed = as_dict(found)["decode_tok_s"]
    assert (speed["value"], speed["measured"], speed["agrees"]) == (40.0, 41.0, True)
    assert speed["measured_low"] == pytest.approx(41 / 1.2) and speed["measured_high"] == pytest.approx(41 * 1.2)
    assert table(found)[0] == ("tok/s", "40", "36 .. 44.4", "41", "34.2 .. 49.2", "agrees")


@pytest.mark.parametrize(("speed", "agrees"), [(33.0, True), (31.5, False), (48.5, True), (51.0, False)])
def test_a_speed_agrees_within_both_intervals(speed: float, agrees: bool) -> None:
    """hypot(log 1.2, log(44.4/36)/2) = 0.21, so 32.4 .. 49.4 tokens/s."""
    found = compare(SETTING, replace(MEASURED, decode_tok_s=speed))
    assert found["decode_tok_s"].agrees == agrees


def test_what_differs_is_said() -> None:
    found = compare(SETTING, replace(MEASURED, decode_tok_s=20.0, perplexity=17.001))
    assert found["perplexity"].verdict == "differs: +0.0%" and not found["perplexity"].agrees
    assert summary(found) == "2 of 3 figures differ from the study's: decode_tok_s -50.0%, perplexity +0.0%"


def test_perplexity_on_another_backend_may_differ_by_the_rounding_of_its_type() -> None:
    other = replace(SETTING, machine={"backend": "metal"})
    assert compare(other, replace(MEASURED, perplexity=17.1))["perplexity"].agrees
    assert not compare(other, replace(MEASURED, perplexity=17.3))["perplexity"].agrees


def test_figures_of_other_texts_are_not_compared() -> None:
    found = compare(SETTING, replace(MEASURED, eval_fingerprint="b" * 16, perplexity=3.0))
    assert [c.agrees for c in found.values()] == [None, True, None], "memory does not depend on the texts"
    assert found["perplexity"].verdict == "other texts"
    assert summary(compare(replace(SETTING, measured={"decode_tok_s": SPEED}), MEASURED)).startswith("1 of 1 figures")
    assert summary({}) == "no figure can be compared with the study's"
