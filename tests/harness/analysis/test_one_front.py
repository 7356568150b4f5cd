"""One front: report, page, panel, status, plot and journal name the same members, the same best and the same counts."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from synthetic import SPACE, searched, streamed

from engine.system.shipped import ROOT
from harness.analysis.counts import Progress
from harness.analysis.findings import findings_of
from harness.analysis.hypervolume import contributions
from harness.analysis.pareto import front
from harness.decisions.confirmation import next_sweep
from harness.results.columns import SCHEMA_VERSION
from harness.results.metrics import objectives_of
from harness.results.older import fill
from harness.results.parquet import SCHEMA, write_table
from harness.results.rows import frame, read_rows, read_trials
from harness.rounds import journal
from harness.rounds.verdict import verdict
from harness.show.live import Panel
from harness.show.plots.front_plot import plot_front
from harness.show.report import report
from harness.status import status

PUBLISHED = sorted((ROOT / "results" / "published").glob("demo*"))
Rows = list[dict[str, Any]]


def simulated(seed: int) -> Rows:
    """A study of 24 settings with 10 % noise, a reference, suspect runs and confirmation."""
    rng = np.random.default_rng(seed)
    rows = [{**r, "origin": "anchor" if r["trial"] <= 5 else "sampler"} for r in searched(seed, streamed, 24)]
    for r in rng.choice(len(rows), 2, replace=False):
        rows[r]["suspect"] = "load: busy"
    rows.append({**rows[0], "trial": 0, "origin": "reference", "cache_gb": None, "decode_tok_s": 50.0})
    spent = 0
    while spent < 12 and (trials := next_sweep(frame(rows), spent=spent, budget=12, sweep=0)):
        for trial in trials:
            runs = [r for r in rows if r["trial"] == trial]
            noisy = runs[0]["decode_tok_s"] * float(np.exp(0.1 * rng.normal()))
            rows.append({**runs[0], "run": len(runs), "origin": "confirm", "suspect": None, "decode_tok_s": noisy})
        spent += len(trials)
    return [{**r, "row_id": f"{r['trial']}-{r['run']}", "round": 1, "wall_s": 1.0, "study": "s", "model": "m"} for r in rows]


def cases() -> Iterator[Any]:
    yield from (pytest.param(lambda f=folder: read_rows(f), id=folder.name) for folder in PUBLISHED)
    yield from (pytest.param(lambda s=seed: simulated(s), id=f"simulated {seed}") for seed in range(3))


@pytest.fixture(params=cases())
def rows(request: pytest.FixtureRequest) -> Rows:
    given: Rows = request.param()
    return given


def test_the_same_members_the_same_best_and_the_same_counts(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    df = frame(rows)
    best, objectives = front(df), objectives_of(df)
    members, first, confirmed = set(map(int, best.index)), int(best.index[0]), int(best["confirmed"].sum())

    findings = findings_of(df, SPACE, objectives)
    entry = journal.entry(1, [], SPACE, df[:0], df, objectives, findings, verdict(df[:0], df), [], "true")
    assert f"- front after: {len(members)} points, {confirmed} confirmed" in entry
    assert f"- best {next(iter(objectives))}: trial {first}," in entry
    counted = dict(re.findall(r"(anchor|sampler|random|proposer) (\d+) of", entry.partition("on the front by origin")[2]))
    assert {o: int(n) for o, n in counted.items()} == contributions(df)["on_front"].to_dict()
    assert sum(contributions(df)["on_front"]) == len(members)

    table = fill(pa.Table.from_pylist(rows, schema=SCHEMA), SCHEMA, SCHEMA_VERSION)
    write_table(tmp_path / "trials.parquet", table)
    for name in ("plot_front", "plot_session"):
        monkeypatch.setattr(f"harness.show.report.{name}", lambda df, path: path)
    report(tmp_path, rows)
    text = capsys.readouterr().out
    assert f"front of {len(members)}, {confirmed} confirmed" in text
    listed = [int(n) for n in re.findall(r"^ *(\d+) ", text.partition("best first")[2].partition("contribution")[0], re.M)]
    assert listed[0] == first
    assert set(listed) - {0} == members

    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    front_rows = page.partition('id="front-table"')[2].partition("</table>")[0].partition("<tbody>")[2]
    assert {int(n) for n in re.findall(r'<tr><td data-value="(\d+)"', front_rows)} - {0} == members
    assert f"{confirmed} of them confirmed" in page

    assert status(tmp_path)[0]["front"] == len(members)
    study: Any = SimpleNamespace(rules={}, trials=24, space=SPACE)
    panel = Panel(study, Console(file=io.StringIO(), width=100, height=50))
    panel._take(rows, Progress(24, 24))
    assert panel._size == len(members)


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda f: f.name)
def test_the_plot_has_the_same_count(folder: Path, tmp_path: Path) -> None:
    df = read_trials(folder)
    picture = plot_front(df, tmp_path / "front.png").with_suffix(".svg").read_text()
    assert f"{len(front(df))} on the front" in picture


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda f: f.name)
def test_the_published_study_has_the_same_front(folder: Path) -> None:
    members = front(read_trials(folder))
    assert f"- front after: {len(members)} points" in (folder / journal.NAME).read_text()
