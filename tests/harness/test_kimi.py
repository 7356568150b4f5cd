"""The target study end to end, on a tiny checkpoint of Kimi K2.5's architecture in the place of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from conftest import Cli

from harness.rows import read_trials


@pytest.mark.slow
def test_kimi_m2max_runs_on_any_checkpoint_of_its_architecture(place: Path, cli: Cli) -> None:
    checkpoint = tiny.make(place / "tiny_kimi", "kimi_k25", per_expert=True)
    status, out, err = cli("study=kimi_m2max", "engine.module=engine", f"model.path={checkpoint}", "budget.trials=3")
    assert (status, err) == (0, "")
    df = read_trials(place / "results" / "kimi_m2max")
    assert df["status"].tolist() == ["ok"] * 3, df["status_reason"].tolist()
    assert df["architecture"].unique().tolist() == ["kimi_k25"]
    assert df["model"].unique().tolist() == ["kimi_k2_5"]
    assert df["cache_gb"].tolist()[1:] == [36, 12]
    assert "◆ knee" in out
