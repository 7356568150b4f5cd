"""Report study: its best trials are the report's front; states, knobs, intervals and logs; optuna-dashboard shows it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from synthetic import frame, row, searched, streamed

from harness.analysis.pareto import Analysis
from harness.propose.report_study import name_of, publish, write_report_study

LOG = "RuntimeError: the disk is gone\n"


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=name_of(folder), storage=f"sqlite:///{folder / 'study.db'}")


def rows_of(seed: int, confirmed: int = 0) -> list[dict[str, Any]]:
    """A search of 40 trials, a reference, failures, an infeasible one, and fresh runs of its fastest trials."""
    rng = np.random.default_rng(100 + seed)
    rows = searched(seed, streamed, 40)
    fast = sorted(rows, key=lambda r: -r["decode_tok_s"])[:confirmed]
    again = [{**r, "run": run, "origin": "confirm", "decode_tok_s": r["decode_tok_s"] * float(np.exp(0.1 * rng.normal()))}
             for r in fast for run in (1, 2, 3)]  # fmt: skip
    odd = [
        row(0, {"cache_gb": None}, (50.0, 9.0, 4.0), origin="reference"),
        row(41, {"cache_gb": 0.02, "expert_bits": 4}, (90.0, 0.01, 3.0), feasible=False, violated="perplexity <= 2 (3)"),
        row(42, {"cache_gb": 0.03, "expert_bits": 4}, (None, None, None), status="oom"),  # type: ignore[arg-type]
        row(44, {"cache_gb": 0.01, "expert_bits": 4}, (None, None, None), status="infeasible"),  # type: ignore[arg-type]
    ]
    return [*rows, *again, *odd]


@pytest.mark.parametrize(("seed", "confirmed"), [(0, 0), (1, 6), (2, 12), (3, 20), (4, 3)])
def test_the_best_trials_are_the_front_of_the_report(seed: int, confirmed: int, tmp_path: Path) -> None:
    rows = rows_of(seed, confirmed)
    found = Analysis(frame(rows))
    write_report_study(tmp_path, rows, found, {})
    standing = found.standings
    front = standing[standing["standing"] == "front"]
    best = load(tmp_path).best_trials
    assert {t.number for t in best} == set(front.index)
    for t in best:
        assert t.values == [front.at[t.number, name] for name in found.objectives]
        assert t.user_attrs["confirmed"] == front.at[t.number, "confirmed"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "demo"
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "trial-000042-00.log").write_text(LOG)
    (folder / "logs" / "trial-000001-00.log").write_text("")
    rows = rows_of(1, 6)
    assert publish(folder, rows, Analysis(frame(rows)), {"fastest": 3}) == "'demo report' in study.db"
    assert publish(folder, rows, Analysis(frame(rows)), {"fastest": 3, "least_memory": 3})  # a second report
    return folder


def test_states_knobs_and_figures(finished: Path) -> None:
    study = load(finished)
    assert study.metric_names == ["decode_tok_s", "peak_memory_gb", "perplexity"]
    assert study.user_attrs["recommended"] == {"fastest": 3, "least_memory": 3}
    trials = study.trials
    assert [t.number for t in trials] == [*range(45)]
    assert {t.state for t in trials[1:42]} == {TrialState.COMPLETE}
    assert [t.state for t in (trials[0], *trials[42:])] == [
        *(TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL, TrialState.PRUNED)
    ]
    assert [trials[i].user_attrs["status"] for i in (42, 43, 44)] == ["oom", "not measured", "infeasible"]
    assert (trials[41].constraints["feasible"], trials[41].user_attrs["violated"]) == (1.0, "perplexity <= 2 (3)")
    assert trials[41].user_attrs["standing"] == "infeasible"
    assert trials[0].user_attrs["decode_tok_s"] == 50.0
    assert {t.params["read_block_kib"] for t in trials[1:40]} <= {16, 32, 64, 128, 256, 1024}
    assert {t.params["io_mode"] for t in trials[1:40]} == {"buffered", "direct"}
    assert trials[3].user_attrs["recommended"] == "fastest, least_memory"
    for t in trials[1:41]:
        assert t.user_attrs["decode_tok_s_low"] < t.values[0] < t.user_attrs["decode_tok_s_high"]


def test_a_log_that_is_not_empty_is_linked(finished: Path) -> None:
    assert [p.name for p in (finished / "artifacts").iterdir()] == ["000042-00"]
    assert (finished / "artifacts" / "000042-00").read_text() == LOG
    assert load(finished).trials[42].user_attrs["log"] == "logs/trial-000042-00.log"


def test_a_storage_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").mkdir()
    rows = rows_of(0)
    line = publish(tmp_path, rows, Analysis(frame(rows)), {})
    assert line.startswith("not written: ") and "\n" not in line


@pytest.fixture(scope="module")
def dashboard(finished: Path) -> Iterator[str]:
    """The address of an optuna-dashboard of the finished study, started as documented."""
    pytest.importorskip("optuna_dashboard")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    program = Path(sys.executable).with_name("optuna-dashboard")
    process = subprocess.Popen(
        [program, "sqlite:///study.db", "--artifact-dir", "artifacts", "--port", str(port)],
        cwd=finished, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            with contextlib.suppress(OSError):
                get(f"{address}/api/studies")
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def test_the_dashboard_shows_the_finished_study(dashboard: str, finished: Path) -> None:
    listed = {s["study_name"]: s["study_id"] for s in json.loads(get(f"{dashboard}/api/studies"))["study_summaries"]}
    study = json.loads(get(f"{dashboard}/api/studies/{listed['demo report']}?after=0"))
    assert study["objective_names"] == ["decode_tok_s", "peak_memory_gb", "perplexity"]
    trial = study["trials"][5]
    stored = load(finished).trials[5]
    assert {p["name"]: p["param_external_value"] for p in trial["params"]} == {n: str(v) for n, v in stored.params.items()}
    assert {"decode_tok_s_low", "decode_tok_s_high", "status", "log"} <= {a["key"] for a in trial["user_attrs"]}
    assert trial["values"] == stored.values
    assert max(study["trials"][41]["constraints"]) > 0 >= max(trial["constraints"])  # drawn as infeasible
    lost = study["trials"][42]
    assert lost["state"] == "Fail"
    assert get(f"{dashboard}/artifacts/{listed['demo report']}/{lost['trial_id']}/000042-00") == LOG
    assert "<div" in get(f"{dashboard}/dashboard/")


def test_a_browser_shows_the_names_of_the_objectives(dashboard: str) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    shown = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom",
         f"{dashboard}/dashboard/studies/1"],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "demo report" in shown.stdout and "decode_tok_s" in shown.stdout and "peak_memory_gb" in shown.stdout
