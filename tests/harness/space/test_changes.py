"""Changes of a space: conditions hold, and memory, disk and a resumed search have the same space."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Knobs
from engine.system.shipped import ROOT
from harness import ConfigError
from harness.rounds import round as spaces
from harness.space.changes import Change, applied, changed, still_possible
from harness.space.entry import Entry
from harness.space.parse import space_from_config
from harness.space.space import Space

BOUNDS = {"one_token": 11.90437, "all_experts": 571.0, "memory_gb": 96.0, "limit_gb": 72.0, "resident": 10.8,
          "cores": 12.0}  # fmt: skip
Session = Callable[..., pd.DataFrame]
LEGAL = {"cache_gb": (0.001, 72.0)}
HELD = {"kimi_k2": {}, "kimi_mini": {"ssd_gbps": 0.1}}  # the config group `knobs`


def shipped(name: str) -> Space:
    return space_from_config(yaml.safe_load((ROOT / "search_spaces" / f"{name}.yaml").read_text()), HELD[name], BOUNDS)


def fixed(space: Space, **values: Any) -> tuple[Space, list[Change]]:
    changes = []
    for knob, value in values.items():
        space, change = changed(space, {"kind": "fix", "knob": knob, "value": value}, LEGAL)
        changes.append(change)
    return space, changes


def extent(entry: Entry, data: st.DataObject) -> dict[str, Any]:
    """Limits or values of a change: a part of an entry, more than it, or neither."""
    if entry.values:
        more = {"sync_window": [2, "all", "auto"], "expert_bits": [6, 8], "cold_bits": [3]}
        pool = [*entry.values, *more.get(entry.name, [8, 16, 32])]
        return {"values": data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=len(pool)))}
    number = st.integers(0, 40) if entry.type == "int" else st.floats(0, 100)
    near = st.sampled_from((entry.low, entry.high)).flatmap(lambda end: st.sampled_from((end, end / 2, end * 2)))
    ends = st.one_of(number, near.map(int) if entry.type == "int" else near)
    return data.draw(st.fixed_dictionaries({}, optional={"low": ends, "high": ends}))


@settings(max_examples=15 * int(os.environ.get("HEADRACE_FUZZ", "1")), deadline=None)
@given(st.sampled_from(sorted(HELD)), st.data())
def test_any_sequence_of_changes_keeps_conditions_and_survives_the_disk(name: str, data: st.DataObject) -> None:
    space = first = shipped(name)
    changes: list[Change] = []
    for _ in range(data.draw(st.integers(1, 6))):
        entry = data.draw(st.sampled_from(space.entries))
        kind = data.draw(st.sampled_from(("fix", "narrow", "widen", "drop")))
        value = data.draw(st.sampled_from(entry.values or entry.ends()))
        given = {"fix": {"value": value}, "drop": {}}.get(kind) if kind in ("fix", "drop") else extent(entry, data)
        try:
            space, change = changed(space, {"kind": kind, "knob": entry.name, **given}, LEGAL)
        except ConfigError as e:
            assert len(str(e).splitlines()) == 1, e  # noqa: PT017
        else:
            changes.append(change)
            assert not set(change.gone) & {e.name for e in space.entries}
    seen: dict[str, Entry] = {}
    for entry in space.entries:
        for parent, values in entry.when:
            assert values and all(v == seen[parent].decode(seen[parent].encode(v)) for v in values)
        seen[entry.name] = entry
    for params in space.anchors():
        Knobs.from_mapping(space.values(params))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=len(changes)))
    for _ in range(5):
        Knobs.from_mapping(space.suggest(study.ask()))

    assert applied(first, changes) == space
    assert still_possible(changes, first, LEGAL) == changes
    with tempfile.TemporaryDirectory() as folder:
        study: Any = SimpleNamespace(
            folder=Path(folder), config={"knobs": HELD[name]}, name=name, bounds=BOUNDS, space=first, rounds=2
        )
        spaces.rounds(study)[0].save_verdict(study, True, "", 1, changes)
        begun, again = spaces.rounds(study)[1], spaces.rounds(study)[1]
    assert begun == again and begun.changes == tuple(changes)
    for kept in (begun.space, again.space):
        assert kept == space and kept.as_config() == space.as_config() and kept.distributions() == space.distributions()


def test_a_fixed_window_decides_about_prefetch() -> None:
    space, (change,) = fixed(shipped("kimi_k2"), sync_window=1)
    assert change.gone == () and space.fixed["sync_window"] == 1
    assert space.entry("prefetch").when == () and space.entry("prefetch_depth").when == (("prefetch", ("stale_gate",)),)
    params = {e.name: e.encode(e.nearest(None)) for e in space.entries} | {"prefetch": "stale_gate", "prefetch_depth": 3}
    assert space.values(params)["prefetch_depth"] == 3
    space, (change,) = fixed(shipped("kimi_k2"), sync_window=4)
    assert change.gone == ("prefetch", "prefetch_depth", "prefetch_width") and not set(change.gone) & set(space.as_config())
    assert "removes prefetch, prefetch_depth, prefetch_width" in str(change)


def test_lists_that_a_condition_names() -> None:
    space, narrower = changed(shipped("kimi_k2"), {"kind": "narrow", "knob": "sync_window", "values": [15, 4]}, LEGAL)
    assert narrower.now == (4, 15) and "prefetch_width" in narrower.gone
    space, wider = changed(
        shipped("kimi_k2"), {"kind": "widen", "knob": "sync_window", "values": [1, 4, 15, 30, 60, "all"]}, LEGAL
    )
    assert wider.now == (1, 4, 15, 30, 60, 0) and wider.gone == ()
    assert space.entry("prefetch").when == (("sync_window", (1,)),)
    space, changes = fixed(shipped("kimi_k2"), cold_bits=None)
    assert changes[0].gone == ("hot_share",) and space.fixed["cold_bits"] is None
    space, changes = fixed(shipped("kimi_k2"), cold_bits=2)
    assert changes[0].gone == () and space.entry("hot_share").when == ()


def test_a_knob_with_a_condition_that_is_fixed_or_dropped_keeps_its_condition() -> None:
    for kind, value in (("fix", {"value": 3}), ("drop", {})):
        space, change = changed(shipped("kimi_k2"), {"kind": kind, "knob": "prefetch_depth", **value}, LEGAL)
        assert change.now == value.get("value", 1) and change.was == (1, 4)
        entry = space.entry("prefetch_depth")
        assert entry.when == (("prefetch", ("stale_gate",)),) and entry.single
        space, _ = changed(space, {"kind": "fix", "knob": "prefetch", "value": "off"}, LEGAL)
        assert "prefetch_depth" not in space.as_config()


class PowerCut(BaseException):
    """Ends a search at once, as `kill -9` does."""


def state(folder: Path) -> dict[str, Any]:
    """The files of a study's rounds, and the distributions that Optuna used."""
    told: dict[str, Any] = {str(p.relative_to(folder)): p.read_text() for p in sorted((folder / "rounds").rglob("*.*"))}
    for summary in optuna.get_all_study_summaries(f"sqlite:///{folder / 'study.db'}"):
        study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{folder / 'study.db'}")
        told[study.study_name] = [(t.user_attrs["trial"], t.distributions) for t in study.trials if "trial" in t.user_attrs]
    return told


def test_a_search_killed_in_every_round_proposes_from_the_same_spaces(
    session: Session, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search is killed in a run of each round, and once before the last verdict is written."""
    monkeypatch.setattr("harness.show.report.report", lambda *_, **__: None)
    (place / "propose.py").write_text(
        "import json, sys\n"
        "rows = json.load(sys.stdin)['rows']\n"
        "first = [{'kind': 'fix', 'knob': 'read_threads', 'value': 7}]\n"
        "later = [{'kind': 'widen', 'knob': 'expert_bits', 'values': [2, 3, 4, 6, 8, None]}]\n"
        "print(json.dumps({'changes': first if len(rows) < 5 else later if len(rows) > 5 else []}))\n"
    )
    command = (
        "rounds=3", "budget.trials=12", "sampler.name=random", "proposer.every=2",
        f"proposer.command='{sys.executable} {place / 'propose.py'}'",
    )  # fmt: skip
    folder = place / "results" / "demo"
    straight = session(*command)
    kept = state(folder)
    assert {"rounds/03/space.yaml", "rounds/01/proposer.json", "demo round 3"} <= set(kept)
    assert "read_threads: 7" in kept["rounds/02/space.yaml"] and "[2, 3, 4, 6, 8, null]" in kept["rounds/03/space.yaml"]
    folder.rename(place / "straight")

    def cut_at(count: int) -> Any:
        def alter(figures: dict[str, Any], n: int) -> dict[str, Any]:
            if n == count:
                raise PowerCut
            return figures

        return alter

    for count in (2, 4, 4):  # of 12 trials and the reference
        with pytest.raises(PowerCut):
            session(*command, alter=cut_at(count))
    end = spaces.Round.save_verdict
    monkeypatch.setattr(spaces.Round, "save_verdict", lambda *_: cut_at(0)({}, 0))
    with pytest.raises(PowerCut):
        session(*command)
    monkeypatch.setattr(spaces.Round, "save_verdict", end)
    resumed = session(*command)
    assert state(folder) == kept
    pd.testing.assert_frame_equal(straight[list(Knobs.names())], resumed[list(Knobs.names())])
