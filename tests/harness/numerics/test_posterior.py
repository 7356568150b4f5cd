"""The posterior: knobs predict true speeds better than single runs, and its draws cover the truth."""

from __future__ import annotations

import numpy as np

from harness.numerics.posterior import coded, posterior


def test_knobs_predict_what_single_runs_hide() -> None:
    rng = np.random.default_rng(0)
    threads, mode = rng.integers(1, 17, 150), rng.choice(["buffered", "direct"], 150)
    true = 0.1 * np.log(threads) + 0.2 * (mode == "direct")
    seen = -true + 0.1 * rng.standard_normal(150)
    known = np.column_stack([coded(list(threads)), coded(list(mode)), coded([None] * 150)])
    se = np.full(150, 0.1)
    mean, drawn = posterior(seen, se, se > 0, known)
    assert np.std(mean + true) < 0.5 * np.std(seen + true)
    assert np.mean(np.abs(drawn.mean(axis=0) + true) < 2 * drawn.std(axis=0)) > 0.9
    _, drawn = posterior(rng.standard_normal(150), se, se > 0, known)  # no effect: own runs count
    assert drawn.std(axis=0).mean() > 0.08
    assert posterior(seen[:3], se[:3], se[:3] > 0, known[:3])[0].tolist() == seen[:3].tolist()


def test_a_choice_and_an_unset_knob_are_columns() -> None:
    assert coded(["a", "b", None, "b"]).tolist() == [[0, 0], [1, 0], [0, 1], [1, 0]]
    assert coded([64, 8192, None, 128]).tolist() == [[-2, 1], [2, 1], [0, 0], [0, 1]]
