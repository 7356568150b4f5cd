"""Sides: names, letters, the rules of the base, draws of a front, and studies that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from two_studies import study

from harness import ResultsError
from harness.compare.sides import letter, names_of, read_sides, shared_speed


def test_names_are_the_shortest_ends_that_differ() -> None:
    assert names_of([Path("/a/results/demo"), Path("/a/results/other")]) == ["demo", "other"]
    assert names_of([Path("/a/results/demo"), Path("/b/results/demo")]) == ["a/results/demo", "b/results/demo"]
    assert names_of([Path("/r/demo"), Path("/r/demo"), Path("/r/demo")]) == ["demo", "demo #2", "demo #3"]
    assert [letter(i) for i in (0, 25, 26)] == ["A", "Z", "A2"]


def test_all_sides_follow_the_rules_of_the_base(tmp_path: Path) -> None:
    strict = {"config": {"recommend": {"max_loss": 0.0, "speed_share": 0.9, "memory_gb": 0.2},
                         "confirm": {"runs": 2, "within": 0.05, "error": 0.03}}}  # fmt: skip
    base, other = read_sides([study(tmp_path / "a", 0), study(tmp_path / "b", 1, config=strict)])
    assert base.wishes == other.wishes != other.own_wishes
    assert [name for name, _, _ in other.named] == [name for name, _, _ in base.named]
    assert shared_speed([base, other]) == "decode_tok_s"


def test_draws_of_two_fronts_are_independent_and_about_the_estimates(tmp_path: Path) -> None:
    base, other = read_sides([study(tmp_path / "a", 0, noise=0.1), study(tmp_path / "b", 0, noise=0.1)])
    speeds = [side.drawn[:, 0, side.objectives.index("decode_tok_s")] for side in (base, other)]
    assert abs(np.corrcoef(*speeds)[0, 1]) < 0.2
    assert np.median(speeds[0]) == pytest.approx(base.front["decode_tok_s"].iloc[0], rel=0.05)
    assert base.drawn.shape[1:] == (len(base.front), 3)


def test_a_study_without_figures_and_a_damaged_manifest_are_refused(tmp_path: Path) -> None:
    good, failed = study(tmp_path / "a"), study(tmp_path / "b", feasible=False)
    with pytest.raises(ResultsError, match="b has no feasible trial"):
        read_sides([good, failed])
    (good / "manifest.json").write_text("{")
    with pytest.raises(ResultsError, match=r"manifest.json is damaged"):
        read_sides([good, good])
    (good / "manifest.json").unlink()
    assert read_sides([good])[0].manifest == {}
