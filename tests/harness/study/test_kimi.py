"""The target study end to end, on a tiny checkpoint of Kimi K2.5's architecture in the place of the real one."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
import tiny
from support import Cli

from harness.results.rows import read_trials


@pytest.mark.slow
def test_kimi_m2max_runs_on_any_checkpoint_of_its_architecture(place: Path, cli: Cli) -> None:
    checkpoint = tiny.make(place / "tiny_kimi", "kimi_k25", per_expert=True)
    status, out, err = cli(
        "study=kimi_m2max",
        "engine.module=engine",
        f"model.path={checkpoint}",
        "budget.trials=2",
        "rounds=1",
        "quality.most=1",
        "protocol.timed_tokens=8",
    )
    assert (status, err) == (0, "")
    df = read_trials(place / "results" / "kimi_m2max")
    assert df["status"].tolist() == ["ok"] * 3, df["status_reason"].tolist()
    assert df["architecture"].unique().tolist() == ["kimi_k25"]
    assert df["model"].unique().tolist() == ["tiny_kimi"]
    middle, least = df["cache_gb"].tolist()[1:]  # of one token's experts .. limit_gb - resident - 1.5, below 75.8
    assert 37 < middle < 38 and least < 0.1
    assert df["device_profile"].unique().tolist() == ["m2max_96gb"]  # no machine that runs this test
    assert "recommended settings:" in out


def test_an_architecture_that_mlx_lm_lacks_is_refused_before_anything_runs(place: Path, cli: Cli) -> None:
    checkpoint = tiny.make(place / "tiny", "deepseek_v3", per_expert=True)
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace('"deepseek_v3"', '"moonbeam"'))
    status, _, err = cli("engine.module=engine", f"model.path={checkpoint}", "study.name=other")
    assert status == 2 and "mlx-lm has no architecture moonbeam; give" in err and err.count("\n") == 1
    assert not (place / "results" / "other").exists()


def test_a_checkpoint_that_cannot_be_loaded_ends_the_study_in_one_line(place: Path, cli: Cli) -> None:
    checkpoint = tiny.make(place / "tiny", "deepseek_v3", per_expert=True)
    weights = dict(mx.load(str(checkpoint / "model.safetensors")))
    norm = weights.pop("model.norm.weight")
    mx.save_safetensors(str(checkpoint / "model.safetensors"), weights)
    command = ["engine.module=engine", f"model.path={checkpoint}", "study.name=lacking", "budget.trials=2"]
    for _ in range(4):  # more often than a trial may be started: this is not the setting's fault
        status, _, err = cli(*command)
        assert status == 2 and "lacks model.norm.weight, which mlx-lm needs" in err and err.count("\n") == 1
    assert norm.size and not list((place / "results" / "lacking" / "trials").glob("*.parquet"))
