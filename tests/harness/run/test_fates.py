"""What may become of a trial, each in a real child process: the row says it, and the sampler hears of it as infeasible."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState
from support import Cli, prepare, spawn

from harness.results.metrics import OBJECTIVES
from harness.results.rows import read_trials

Study = tuple[pd.DataFrame, dict[int, FrozenTrial], str]
FATES = {  # fault: (status, reason)
    "crash": ("crash", "signal SIGSEGV"),
    "exit": ("crash", "exit status 7: the disk is on fire"),
    "error": ("crash", "shard 3 cannot be read; copy it again"),
    "knob": ("infeasible", "40 columns are no multiple of 32"),
    "kill": ("oom", "killed by the system (SIGKILL)"),
    "malloc": ("oom", "RuntimeError: [malloc] Unable to allocate 9000000000 bytes."),
    "hang": ("timeout", "no result within 6 s (budget.trial_timeout_s)"),
    "burst": ("oom", "are above the limit of 0.6 GB"),
}
THREADS = {kind: 20 + i for i, kind in enumerate(FATES)}  # the number of read_threads that brings the fault about


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One study that meets every fault: its rows, what Optuna was told, and what was printed."""
    place = prepare(tmp_path_factory.mktemp("fates"))
    (place / "checkpoint" / "faults.json").write_text(json.dumps({n: kind for kind, n in THREADS.items()}))
    anchors = ",".join(f"{{cache_gb:0.01,read_threads:{n}}}" for n in THREADS.values())
    limits = ("budget.trial_timeout_s=6", "device.memory_gb=0.6", "device.usable_share=1")
    space = ("~search_space.expert_bits", "~search_space.cold_bits", "~search_space.hot_share",
             "search_space.read_threads.high=99")  # fmt: skip
    overrides = (f"study.anchors=[{anchors}]", f"budget.trials={3 + len(FATES)}", *limits, *space)
    process = spawn(place, *overrides)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    folder = place / "results" / "demo"
    told = optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}").get_trials()
    return read_trials(folder), {t.user_attrs["trial"]: t for t in told if "trial" in t.user_attrs}, out


@pytest.mark.parametrize("kind", FATES)
def test_fate(study: Study, kind: str) -> None:
    df, told, out = study
    expected, reason = FATES[kind]
    row = df[df["read_threads"] == THREADS[kind]].iloc[0]
    assert row["status"] == expected
    assert reason in row["status_reason"]
    assert "\n" not in row["status_reason"]
    assert row[list(OBJECTIVES)].isna().all()
    assert (row["cache_gb"], row["origin"]) == (0.01, "anchor")
    assert row["seen_peak_gb"] > (0.6 if kind == "burst" else 0.01)
    assert row["status_reason"] in out
    trial = told[row["trial"]]
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints["possible"] > 0
    before = df[(df["status"] == "ok") & (df["trial"] < row["trial"])]
    assert trial.values == [before["decode_tok_s"].min(), before["peak_memory_gb"].max(), before["perplexity"].max()]


def test_the_others_are_not_touched(study: Study) -> None:
    df, told, _ = study
    assert df["trial"].tolist() == list(range(5 + len(FATES)))  # what the engine refused does not count
    fine = df[~df["read_threads"].isin(THREADS.values())]
    assert (fine["status"] == "ok").all()
    assert all(told[n].constraints["possible"] < 0 for n in fine["trial"] if n in told)


def test_what_cannot_fit_is_foreseen_and_not_run(place: Path, cli: Cli) -> None:
    limits = ("device.memory_gb=0.09", "device.usable_share=1", "search_space.cache_gb.high=0.075")
    status, out, _ = cli("budget.trials=3", *limits)
    assert status == 0
    df = read_trials(place / "results" / "demo")
    ran = df[df["status"] != "infeasible"]
    assert len(ran) == 3
    assert "no reference: with everything resident it would take 0.1 GB, above the limit of 0.09 GB" in out
    assert (ran["status"] == "ok").all()
    foreseen = df[df["status"] == "infeasible"]
    assert len(foreseen) and foreseen["status_reason"].str.contains("above the limit of 0.09 GB").all()
    assert foreseen["wall_s"].eq(0).all() and foreseen["saved_s"].notna().any()
    assert len((place / "checkpoint" / "runs.log").read_text().splitlines()) == 3
