"""Ends of a run, each in a real child process: the row states it, and the sampler receives it as infeasible."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import FrozenTrial, TrialState
from support import HERE, Cli, arguments, prepare

from engine import CheckpointError
from harness import ResultsError, search
from harness.results.metrics import OBJECTIVES
from harness.results.rows import read_trials
from harness.run.supervise import fate, run_child

Study = tuple[pd.DataFrame, dict[int, FrozenTrial]]
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
THREADS = {kind: 20 + i for i, kind in enumerate(FATES)}  # the value of read_threads that causes the fault


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A study in this process that meets every fault, each in a child: its rows and Optuna's trials."""
    place = prepare(tmp_path_factory.mktemp("fates"))
    (place / "checkpoint" / "faults.json").write_text(json.dumps({n: kind for kind, n in THREADS.items()}))
    anchors = ",".join(f"{{cache_gb:0.01,read_threads:{n}}}" for n in THREADS.values())
    limits = ("budget.trial_timeout_s=6", "device.memory_gb=0.6", "device.usable_share=1")
    space = ("~search_space.expert_bits", "~search_space.cold_bits", "~search_space.hot_share",
             "search_space.read_threads.high=99")  # fmt: skip
    overrides = (f"study.anchors=[{anchors}]", f"budget.trials={2 + len(FATES)}", *limits, *space)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", str(HERE))
        patch.chdir(place)
        patch.setattr(sys, "argv", ["search", *arguments(place, *overrides)])
        patch.setattr(search, "_status", 0)
        patch.setattr("harness.show.report.report", lambda *args, **more: None)
        assert search.main() == 0
        folder = place / "results" / "demo"
        stored = optuna.load_study(study_name="demo", storage=f"sqlite:///{folder / 'study.db'}").get_trials()
        yield read_trials(folder), {t.user_attrs["trial"]: t for t in stored if "trial" in t.user_attrs}


@pytest.mark.parametrize("kind", FATES)
def test_fate(study: Study, kind: str) -> None:
    df, stored = study
    expected, reason = FATES[kind]
    row = df[df["read_threads"] == THREADS[kind]].iloc[0]
    assert row["status"] == expected
    assert reason in row["status_reason"]
    assert "\n" not in row["status_reason"]
    assert row[list(OBJECTIVES)].isna().all()
    assert (row["cache_gb"], row["origin"]) == (0.01, "anchor")
    assert row["seen_peak_gb"] > (0.6 if kind == "burst" else 0.01)
    trial = stored[row["trial"]]
    assert trial.state == TrialState.COMPLETE
    assert trial.constraints["possible"] > 0
    before = df[(df["status"] == "ok") & (df["trial"] < row["trial"])]
    assert trial.values == [before["decode_tok_s"].min(), before["peak_memory_gb"].max(), before["perplexity"].max()]


def test_the_others_are_not_affected(study: Study) -> None:
    df, stored = study
    assert df["trial"].tolist() == list(range(4 + len(FATES)))  # the infeasible setting does not count
    fine = df[~df["read_threads"].isin(THREADS.values())]
    assert (fine["status"] == "ok").all() and len(fine) >= 3
    assert all(stored[n].constraints["possible"] < 0 for n in fine["trial"] if n in stored)


def test_a_setting_that_cannot_fit_is_predicted_and_not_run(place: Path, cli: Cli, in_process: Any) -> None:
    in_process(lambda figures, n: figures)
    limits = ("device.memory_gb=0.09", "device.usable_share=1", "search_space.cache_gb.high=0.075")
    status, out, _ = cli("budget.trials=3", *limits)
    assert status == 0
    df = read_trials(place / "results" / "demo")
    ran = df[df["status"] != "infeasible"]
    assert len(ran) == 3
    assert "no reference: with everything resident it would take 0.1 GB, above the limit of 0.09 GB" in out
    assert (ran["status"] == "ok").all()
    predicted = df[df["status"] == "infeasible"]
    assert len(predicted) and predicted["status_reason"].str.contains("above the limit of 0.09 GB").all()
    assert predicted["wall_s"].eq(0).all() and predicted["saved_s"].notna().any()
    assert len((place / "checkpoint" / "runs.log").read_text().splitlines()) == 3


def test_a_full_disk_is_no_crash(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback ...\nOSError: [Errno 28] No space left on device: 'result.tmp'\n")
    with pytest.raises(ResultsError, match=r"No space left .*; make room"):
        fate({}, 1, log, [])
    log.write_text("OSError: [Errno 5] Input/output error\n")
    assert fate({}, 1, log, []) == ("crash", f"exit status 1: OSError: [Errno 5] {os.strerror(5)}")
    assert fate({"figures": {"decode_tok_s": None}}, 0, log, ["decode_tok_s"]) == ("crash", "decode_tok_s is missing")


WATCH = """
import os, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "mlx.core" and not os.path.exists("OUT"):
            open("OUT", "w").write(repr({k: v for k, v in os.environ.items() if k.startswith("MLX_")}))
sys.meta_path.insert(0, Finder())
"""


def test_the_child_has_the_variables_of_its_knobs_before_it_imports_mlx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "MLX_METAL_FAST_SYNCH"):
        monkeypatch.delenv(name, raising=False)
    out = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(WATCH.replace("OUT", str(out)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    request = tmp_path / "request.json"
    knobs = {"mlx_ops_per_buffer": 20, "mlx_mb_per_buffer": None, "mlx_fast_synch": True}
    request.write_text(
        json.dumps({"checkpoint": str(tmp_path / "none"), "judge": "none", "knobs": knobs, "engine": "engine"})
    )
    with contextlib.suppress(CheckpointError):
        run_child(
            request, tmp_path / "logs" / "log", timeout_s=60, hang_s=None, limit_gb=10, needed=[],
            interrupted=lambda: False, started=lambda pid: None,
        )  # fmt: skip
    assert out.exists(), (tmp_path / "logs" / "log").read_text()
    assert out.read_text() == repr({"MLX_MAX_OPS_PER_BUFFER": "20", "MLX_METAL_FAST_SYNCH": "1"})
