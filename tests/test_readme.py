"""README: its front, its sample command and its figures follow from the published study."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.analysis.estimates import noise
from harness.analysis.hypervolume import contributions
from harness.analysis.pareto import front
from harness.decisions.recommend import compared, default_trial, named, ratio, recommended, rules_of, wishes_of
from harness.results.metrics import SHORT, objectives_of
from harness.results.rows import read_rows, read_trials
from harness.show.page.summary import Summary
from harness.show.report import to_use
from harness.show.text import number, with_interval

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDY = ROOT / "results" / "published" / "demo_ssd_0.1"
LONGEST = 150


@pytest.fixture(scope="module")
def df() -> pd.DataFrame:
    return read_trials(STUDY)


@pytest.fixture(scope="module")
def points(df: pd.DataFrame) -> dict[str, pd.Series]:
    """The recommended settings, default and reference by name."""
    return {name: point for name, point, _ in named(df, recommended(df, **wishes_of(STUDY)))}


def test_it_is_short_and_its_samples_fit_a_terminal() -> None:
    lines = README.splitlines()
    assert len(lines) <= LONGEST
    assert max(map(len, lines)) <= 125
    for block in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL):
        assert max(map(len, block.splitlines())) <= 80


def test_the_front_is_that_of_the_published_study(df: pd.DataFrame, points: dict[str, pd.Series]) -> None:
    lines = []
    for label, point in front(df, **rules_of(STUDY)).iterrows():
        sure = "confirmed" if point["confirmed"] else "unconfirmed"
        lines.append((f"trial {point['trial']}, {sure}" + (": the default" if label == default_trial(df) else ""), point))
    lines.append(("reference: everything resident", points["reference"]))
    expected = []
    for name, point in lines:
        figures = [with_interval(point, metric) for metric in objectives_of(df)]
        times = number(ratio(df, point, points["default"])[0], 3)
        expected.append(f"| {' | '.join([name, *figures, times])} |")
    shown = [line for line in README.splitlines() if line.startswith(("| trial ", "| reference: "))]
    assert shown == expected


def test_the_sentence_below_the_front_is_what_the_report_says(df: pd.DataFrame, points: dict[str, pd.Series]) -> None:
    text = " ".join(README.split())
    times, same, more = compared(df, points["fastest_lossless"], points["default"]).split(", ")
    assert times.removesuffix(" the default") + " as fast as the default at the " + same in text
    assert f"for {more.removeprefix('+')} more" in text
    ran = df[(df["run"] == 0) & (df["status"] == "ok") & (df["origin"] != "reference")]
    evidence = (ROOT / "docs" / "evidence" / "search.md").read_text(encoding="utf-8")
    measured = re.search(r"The command took (\d+) to (\d+) s in", evidence)
    assert measured
    least, most = (round(int(seconds) / 60) for seconds in measured.groups())
    minutes = f"about {least}" if least == most else f"{least} to {most}"
    assert f"{len(ran)} trials, {minutes} minutes on two cores" in text


def test_the_command_is_what_the_report_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = re.sub(r"\s*\\\n\s*", " ", README)
    assert all(line in text for line in to_use(Summary(STUDY, read_rows(STUDY))))


def test_the_evidence_of_the_published_study_is_what_its_rows_say(df: pd.DataFrame) -> None:
    text = (ROOT / "docs" / "evidence" / "search.md").read_text(encoding="utf-8")
    for origin, c in contributions(df, **rules_of(STUDY)).iterrows():
        shares = f"{int(c['on_front'])} of {int(c['trials'])} ({c['on_front'] / c['trials']:.1%}) | {c['lost']:.1%} |"
        assert f"| {origin} | {shares} {c['lost'] / c['trials']:.2%} |" in text
    found = [f"{SHORT[metric]} {row['sd']:.1%}" for metric, row in noise(df).iterrows() if row["runs"] and row["sd"] > 0]
    assert f"{', '.join(found)}." in text
    drift = df["drift"].dropna()
    assert f"{drift.min():.0%} to {drift.max():.0%} of its earlier median over {len(drift)} measurements" in text
