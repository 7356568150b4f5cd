"""Shared study: no setting is lost or measured twice when a machine vanishes; a machine of another kind is refused."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from asked import row_of, search, space
from optuna.trial import TrialState
from support import Cli, spawn

from harness import ConfigError
from harness.bench.postgres import binaries, postgres
from harness.merge import main as merge
from harness.propose.ask_tell import Proposals
from harness.propose.shared import Shared
from harness.propose.storage import open_storage
from harness.report import main as report
from harness.results.rows import read_trials
from harness.space.space import canonical

needs_postgres = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL is installed (initdb, postgres)")


class Worker:
    """One machine's view of a study in a file, without measurements."""

    def __init__(self, folder: Path, owner: str, stale_s: float = 0.05) -> None:
        self.owner, self.rows = owner, list[dict[str, Any]]()
        self.storage = open_storage(folder)
        self.proposals = Proposals(self.storage, "s", search(), space(), space().anchors(), self.rows, owner=owner)
        self.shared = Shared(self.proposals.study, self.storage, owner, stale_s)

    def measure(self, count: int = 1) -> list[int]:
        made = [self.proposals.ask() for _ in range(count)]
        for p in made:
            self.rows.append(row_of(p))
            self.proposals.tell(self.rows[-1], [*self.rows, *self.shared.look()[0]])
        return [p.trial for p in made]

    def settings(self) -> list[str]:
        return [canonical({k: r[k] for k in ("cache_gb", "read_threads", "expert_bits")}) for r in self.rows]


def stale(worker: Worker) -> int:
    worker.shared.take_over()
    time.sleep(0.1)
    return worker.shared.take_over()


def test_two_machines_propose_distinct_settings_and_know_each_others_rows(tmp_path: Path) -> None:
    a, b = Worker(tmp_path, "a"), Worker(tmp_path, "b")
    trials = [t for _ in range(4) for w in (a, b) for t in w.measure()]
    assert trials == list(range(1, 9))
    settings = a.settings() + b.settings()
    assert len(set(settings)) == 8
    assert [r["trial"] for r in a.shared.look()[0]] == [r["trial"] for r in b.rows]
    assert a.shared.look()[0][0]["decode_tok_s"] == b.rows[0]["decode_tok_s"]
    seeds = [t.user_attrs["seed"] for t in a.proposals.trials if "seed" in t.user_attrs]
    assert len(set(seeds)) == len(seeds)


def test_the_setting_of_a_vanished_machine_is_measured_once_more(tmp_path: Path) -> None:
    a, b = Worker(tmp_path, "a"), Worker(tmp_path, "b")
    a.measure(4)
    lost = a.proposals.ask()
    with a.shared.beating(lost.trial):
        assert stale(b) == 0
    assert b.shared.look()[1] == 1
    assert stale(b) == 1 and b.shared.look()[1] == 0
    again = b.proposals.ask()
    assert (again.values, again.origin, again.starts) == (lost.values, lost.origin, 1)
    assert again.trial != lost.trial
    row = row_of(lost)  # its machine comes back: its row stays local
    a.proposals.tell(row, [row])
    assert a.proposals.pending([]) and lost.trial not in [p.trial for p in a.proposals.pending([])]
    assert b.proposals.ask().values != lost.values


def test_a_trial_without_a_number_is_ended_and_its_anchor_enqueued_again(tmp_path: Path) -> None:
    a, b = Worker(tmp_path, "a"), Worker(tmp_path, "b")
    first = a.proposals.study.ask()  # and the machine vanishes
    assert stale(b) == 1
    made = [b.proposals.ask() for _ in range(len(space().anchors()))]
    assert [p.origin for p in made] == ["anchor"] * len(made)
    assert len({canonical(p.values) for p in made}) == len(made)
    assert b.proposals.trials[first.number].state == TrialState.FAIL


def test_rows_unknown_to_the_study_are_refused(tmp_path: Path) -> None:
    Worker(tmp_path, "a").measure(2)
    b = Worker(tmp_path, "b")
    b.measure()
    with pytest.raises(ConfigError, match=r"holds 1 trials unknown to the shared study .* another results_dir"):
        Proposals(b.storage, "s", search(), space(), (), b.rows, owner="c")


def test_one_machine_measures_the_reference(tmp_path: Path) -> None:
    a, b = Worker(tmp_path, "a"), Worker(tmp_path, "b")
    assert (a.shared.claim_reference(), b.shared.claim_reference(), a.shared.claim_reference()) == (True, False, True)
    row = {**row_of(a.proposals.ask()), "trial": 0, "origin": "reference"}
    a.shared.tell_reference(row)
    assert [r["origin"] for r in b.shared.look()[0]] == ["reference"]
    assert a.shared.look()[0] == []


@pytest.mark.slow
@needs_postgres
def test_two_workers_of_which_one_is_killed(place: Path, cli: Cli) -> None:
    wanted, folders = 5, [place / f"w{i}" / "demo" for i in range(2)]
    (place / "checkpoint" / "slow_s").write_text("0.5")
    with postgres() as url:
        given = [f"storage.url={url}", "storage.stale_s=3", f"budget.trials={wanted}", "sampler.name=tpe"]
        workers = [spawn(place, *given, f"results_dir={place / f'w{i}'}") for i in range(2)]
        lost = trial_of(folders[0])
        workers[0].send_signal(signal.SIGKILL)
        for worker in workers:
            _, err = worker.communicate(timeout=250)
            assert err == ""
        assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0]

        study = optuna.load_study(study_name="demo", storage=url.replace("postgresql:", "postgresql+psycopg:"))
        ended = {t.user_attrs["trial"]: t for t in study.trials}
        assert {t.state for t in study.trials} == {TrialState.COMPLETE, TrialState.FAIL}
        assert [n for n, t in ended.items() if t.state == TrialState.FAIL] == [lost]
        assert [t.params for t in study.trials if t.user_attrs.get("vanished") is not None] == [ended[lost].params]

        assert merge([str(place / "out"), *(str(f) for f in folders if any(f.glob("**/*.parquet")))]) == 0
        df = read_trials(place / "out")
        assert sorted(df["trial"]) == [0, *(n for n, t in sorted(ended.items()) if t.state == TrialState.COMPLETE)]
        assert len(df) == wanted + 1 and df["row_id"].is_unique and df["machine"].notna().all()
        assert report([str(place / "out")]) == 0

        rows = len(read_trials(folders[1]))
        assert cli(*given, f"results_dir={place / 'w1'}")[0] == 0  # nothing is left to do
        assert len(read_trials(folders[1])) == rows
        different = ("device.usable_share=0.1", "study.seed=7", "knobs.ssd_gbps=0.2")
        status, out, err = cli(*given, f"results_dir={place / 'new'}", *different)
        assert (status, out, err.count("\n")) == (2, "", 1)
        for difference in ("machine.limit_gb was ", "seed was 0 and is now 7", "knobs.ssd_gbps was 0.1 and is now 0.2"):
            assert difference in err
        assert "study.name=OTHER" in err and not (place / "new" / "demo" / "manifest.json").exists()


def trial_of(folder: Path) -> int:
    """The first running trial after the reference."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            trial = json.loads((folder / "running.json").read_text())["trial"]
            if trial and (folder / "child.json").exists():
                return int(trial)
        time.sleep(0.02)
    raise AssertionError(f"no trial ran in {folder} within 120 s")
