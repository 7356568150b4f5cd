"""The search's command line: help, relative paths, several studies in a row, and what reaches the rows."""

from __future__ import annotations

from pathlib import Path

from support import Cli, spawn

from engine import Judge
from harness.results.rows import read_trials


def test_help_names_groups_and_knobs(cli: Cli) -> None:
    status, out, err = cli("study=auto", "--help")
    assert (status, err) == (0, "")
    for part in (
        "study:        auto, demo, kimi_m2max",
        "evict_half_life",
        "quality.text=FILE",
        "search_space:",
        "--multirun",
    ):
        assert part in out


def test_from_another_folder_with_relative_paths(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    process = spawn(place, "results_dir=mine", "budget.trials=1", "quality.text=../judge.txt", cwd=elsewhere)
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, "")
    assert "rows  mine/demo/trials" in out
    assert len(read_trials(elsewhere / "mine" / "demo")) == 2
    assert [p.name for p in elsewhere.iterdir()] == ["mine"]


def test_several_studies_in_a_row(cli: Cli, place: Path) -> None:
    status, _, err = cli("-m", "study.name=a,b", "budget.hours=0", "constraints=[peak_memory_gb <= 80, kl <= 1]")
    assert (status, err) == (0, "")
    assert {p.name for p in (place / "results").iterdir()} >= {"a", "b"}
    sweep = ("study.name=a,b", "constraints=[peak_memory_gb <= 80],[kl <= 1]")
    status, _, err = cli("-m", *sweep, "study.seed=1", "budget.hours=0")
    assert (status, err.count("\n")) == (2, 4)


def test_a_users_own_text_is_another_judge(direct: Cli, place: Path) -> None:
    assert direct("budget.trials=1")[0] == 0
    (place / "mine.txt").write_text("Whoever opens the gate decides how fast the wheel will turn today. " * 30)
    assert direct("budget.trials=1", "quality.text=mine.txt", "study.name=mine")[0] == 0
    assert direct("budget.trials=1", "quality.text=mine.txt", "study.name=one", "quality.most=1")[0] == 0
    rows = [read_trials(place / "results" / name).iloc[0] for name in ("demo", "mine", "one")]
    assert len({r["eval_fingerprint"] for r in rows}) == 3
    assert [r["eval_texts"] for r in rows] == ["judge", "mine", "mine (1 of 2 texts)"]
    texts = [Judge.load(place / "results" / name / "judge.yaml") for name in ("demo", "mine", "one")]
    assert [j.fingerprint for j in texts] == [r["eval_fingerprint"] for r in rows]
    assert [len(j.texts) for j in texts] == [1, 2, 1]


def test_fixed_knobs_reach_the_engine_and_the_row(direct: Cli, place: Path) -> None:
    assert direct("budget.trials=1", "search_space.read_threads=7", "knobs.ssd_gbps=0.125")[0] == 0
    df = read_trials(place / "results" / "demo")
    assert df["read_threads"].tolist()[1] == 7
    assert df["ssd_gbps"].tolist()[1] == 0.125
    assert df["ssd_gbps"].isna().tolist()[0]  # the reference streams nothing
    assert '"read_threads": 7' in (place / "checkpoint" / "runs.log").read_text().splitlines()[1]
