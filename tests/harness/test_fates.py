"""What may become of a trial, each in a real child process: the row says it, and the sampler hears of it as infeasible."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
from conftest import Cli
from optuna.trial import TrialState

from harness.columns import OBJECTIVES
from harness.rows import read_trials

FATES = [
    ("crash", "crash", "signal SIGSEGV"),
    ("exit", "crash", "exit status 7: the disk is on fire"),
    ("error", "crash", "shard 3 cannot be read; copy it again"),
    ("kill", "oom", "killed by the system (SIGKILL)"),
    ("hang", "timeout", "no result within 6 s (budget.trial_timeout_s)"),
    ("burst", "oom", "are above the limit of 0.6 GB"),
]


@pytest.mark.parametrize(("kind", "expected", "reason"), FATES, ids=[kind for kind, *_ in FATES])
def test_fate(place: Path, cli: Cli, kind: str, expected: str, reason: str) -> None:
    # Trials: the reference, the defaults (whose cache is in the middle: spared), two corners of which one is hit.
    (place / "checkpoint" / "fault.json").write_text(json.dumps({"knob": "cache_gb", "above": 0.04, "kind": kind}))
    timeout = 6 if kind == "hang" else 60
    args = (f"budget.trial_timeout_s={timeout}", "device.memory_gb=0.6", "device.usable_share=1")
    status, out, err = cli("budget.trials=4", *args)
    assert (status, err) == (0, "")
    df = read_trials(place / "results" / "demo")
    assert df["status"].tolist() == ["ok", "ok", "ok", expected]
    row = df.iloc[3]
    assert reason in row["status_reason"]
    assert "\n" not in row["status_reason"]
    assert df.loc[3, list(OBJECTIVES)].isna().all()
    assert row["cache_gb"] == 0.05
    assert row["seen_peak_gb"] > (0.6 if kind == "burst" else 0.01)
    assert expected in out
    study = optuna.load_study(study_name="headrace", storage=f"sqlite:///{place / 'results/demo/study.db'}")
    told = {t.user_attrs["trial"]: t for t in study.get_trials() if "trial" in t.user_attrs}
    assert all(t.state == TrialState.COMPLETE for t in told.values())
    assert told[3].constraints["infeasible"] > 0 > told[2].constraints["infeasible"]
    ok = df[df["status"] == "ok"]
    assert told[3].values == [ok["decode_tok_s"].min(), ok["peak_memory_gb"].max(), ok["perplexity"].max()]


def test_what_cannot_fit_is_foreseen_and_not_run(place: Path, cli: Cli) -> None:
    status, out, _ = cli(
        "budget.trials=5", "device.memory_gb=0.09", "device.usable_share=1", "search_space.cache_gb.high=0.075"
    )
    assert status == 0
    df = read_trials(place / "results" / "demo")
    assert df["origin"].tolist() == ["anchor"] * 5
    assert df["trial"].tolist() == [1, 2, 3, 4, 5]
    assert "no reference: with everything resident it would take 0.1 GB, above the limit of 0.09 GB" in out
    foreseen = df[df["status"] == "infeasible"]
    assert len(foreseen) == 1
    assert "above the limit of 0.09 GB" in foreseen.iloc[0]["status_reason"]
    assert len((place / "checkpoint" / "runs.log").read_text().splitlines()) == 4
