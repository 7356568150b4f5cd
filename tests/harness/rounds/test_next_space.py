"""Next space: real effects become changes, noise does not, and every change is legal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from synthetic import LEGAL, SPACE, Figures, frame, noise, searched, streamed

from harness import ConfigError
from harness.analysis.findings import MIN_POINTS, findings_of
from harness.results.metrics import OBJECTIVES
from harness.rounds.next_space import next_space
from harness.space.changes import applied, changed
from harness.space.parse import space_from_config


def test_the_bound_and_the_idle_knobs_are_found_in_nine_of_ten_seeds() -> None:
    readings = [findings_of(frame(searched(seed, streamed)), SPACE, OBJECTIVES) for seed in range(10)]
    assert sum(any((f.knob, f.side) == ("cache_gb", "high") for f in r.bounds) for r in readings) >= 9
    assert sum("evict_half_life" in r.never for r in readings) >= 9
    assert not any({"cache_gb", "expert_bits", "read_threads"} & set(r.never) for r in readings)
    proposed = [next_space(r, SPACE, LEGAL) for r in readings]
    wanted = {("widen", "cache_gb"), ("drop", "evict_half_life")}
    assert sum(wanted <= {(c.kind, c.knob) for c in changes} for changes in proposed) >= 8
    changes = next(changes for changes in proposed if wanted <= {(c.kind, c.knob) for c in changes})
    assert next(c for c in changes if c.knob == "cache_gb").now == (0.005, 0.06), "the machine ends there"
    assert all(any(digit.isdigit() for digit in c.evidence) for c in changes)
    after = applied(SPACE, changes)
    assert space_from_config(after.as_config(), {}) == after


def test_noise_changes_nothing_in_nine_of_ten_seeds() -> None:
    proposed = [next_space(findings_of(frame(searched(seed, noise)), SPACE, OBJECTIVES), SPACE, LEGAL) for seed in range(10)]
    assert sum(not changes for changes in proposed) >= 9


def test_few_points_say_nothing() -> None:
    few = findings_of(frame(searched(0, streamed, MIN_POINTS - 1)), SPACE, OBJECTIVES)
    assert not (few.never or few.bounds or few.empty or few.clear)
    assert next_space(few, SPACE, LEGAL) == []
    assert findings_of(frame([]), SPACE, OBJECTIVES).importance.points == 0


def test_an_empty_part_is_narrowed_and_a_clear_value_fixed() -> None:
    def response(values: dict[str, Any], rng: np.random.Generator) -> Figures:
        bad = (values["evict_half_life"] > 20) + 2 * (values["io_mode"] == "buffered")
        return 10 * math.exp(-3 * bad + 0.05 * rng.normal()), 1.0, 5.0

    changes = {c.knob: c for c in next_space(findings_of(frame(searched(1, response, 80)), SPACE, OBJECTIVES), SPACE, {})}
    assert (changes["io_mode"].kind, changes["io_mode"].now) == ("fix", "direct")
    assert changes["evict_half_life"].kind == "narrow"
    assert changes["evict_half_life"].now == (1, pytest.approx(40.32, rel=1e-3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "grow", "knob": "cache_gb"}, "change kind=grow is unknown"),
        ({"kind": "fix", "knob": "cach_gb", "value": 1}, "cach_gb is not in the search space; did you mean cache_gb"),
        ({"kind": "widen", "knob": "cache_gb", "high": 0.07}, "0.07 is outside this machine's limits 0.005 .. 0.06"),
        ({"kind": "widen", "knob": "cache_gb", "high": 0.03}, "does not widen"),
        ({"kind": "widen", "knob": "cache_gb"}, "lacks high and low"),
        ({"kind": "widen", "knob": "cache_gb", "high": "0.05"}, "are not two numbers"),
        ({"kind": "narrow", "knob": "cache_gb", "low": 0.04}, "leaves one value; fix it instead"),
        ({"kind": "widen", "knob": "expert_bits", "values": [3, 4, 6, 7, 8]}, "expert_bits=7 is not a width that MLX"),
        ({"kind": "narrow", "knob": "expert_bits", "values": [3, [4]]}, "is not a list of values"),
        ({"kind": "narrow", "knob": "expert_bits", "high": 4}, "high is not a key here; give values"),
        ({"kind": "fix", "knob": "io_mode", "value": "mapped"}, "io_mode=mapped is unknown"),
        ({"kind": "fix", "knob": "io_mode"}, "lacks value"),
        ({"kind": "widen", "knob": "read_threads", "high": 300}, "read_threads=300 is out of range"),
    ],
)
def test_changes_pass_the_checks_of_a_user(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        changed(SPACE, change, LEGAL)
    assert "\n" not in str(e.value)


def test_the_last_knob_that_moves_stays() -> None:
    alone = space_from_config({"cache_gb": {"type": "float", "low": 0.01, "high": 0.02}}, {})
    with pytest.raises(ConfigError, match="no knob that varies"):
        changed(alone, {"kind": "drop", "knob": "cache_gb"}, {})
