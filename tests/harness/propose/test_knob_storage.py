"""Knob storage: values for readers, indices for the sampler, and the conversion of studies that hold indices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from asked import row_of, search, space
from optuna.storages import InMemoryStorage

from harness.propose.ask_tell import Proposal, Proposals
from harness.propose.samplers import sampler_for
from harness.propose.storage import open_storage
from harness.results.metrics import OBJECTIVES
from harness.study.constraints import parse

CHOICES = [3, 4, 8, None]  # of expert_bits


def go_on(asked: Proposals, rows: list[dict[str, Any]], count: int, **values: Any) -> None:
    for _ in range(count):
        rows.append(row_of(asked.ask(), **values))
        asked.tell(rows[-1], rows)


def read(storage: Any) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=storage)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder, rows = tmp_path_factory.mktemp("finished"), list[dict[str, Any]]()
    limits = (parse("peak_memory_gb <= 0.6"),)
    asked = Proposals(open_storage(folder), "s", search(constraints=limits), space(), space().anchors(), rows)
    go_on(asked, rows, 6, decode_tok_s_low=9.0, decode_tok_s_high=11.0)
    go_on(asked, rows, 1, status="oom", status_reason="above the limit", decode_tok_s=None, peak_memory_gb=None)
    go_on(asked, rows, 1, peak_memory_gb=0.9, feasible=False, violated="peak_memory_gb <= 0.6 (0.9)")
    assert [t.params["expert_bits"] for t in asked.trials] == [CHOICES.index(r["expert_bits"]) for r in rows]
    return folder, rows


def test_the_study_holds_the_values_of_the_rows(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = finished
    study = read(f"sqlite:///{folder / 'study.db'}")
    assert study.metric_names == [*OBJECTIVES]
    assert [t.params for t in study.trials] == [{n: r[n] for n in space().distributions()} for r in rows]
    assert {t.params["expert_bits"] for t in study.trials} <= {*CHOICES}
    anchors = [t for t in study.trials if "fixed_params" in t.system_attrs]
    assert anchors and all(t.system_attrs["fixed_params"] == t.params for t in anchors)


def test_a_trial_has_the_facts_of_its_row(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = finished
    good, lost, fat = (read(f"sqlite:///{folder / 'study.db'}").trials[i] for i in (0, 6, 7))
    assert good.user_attrs["log"] == "logs/trial-000001-00.log"
    assert (good.user_attrs["decode_tok_s_low"], good.user_attrs["decode_tok_s_high"]) == (9.0, 11.0)
    assert (lost.user_attrs["status"], lost.user_attrs["status_reason"]) == ("oom", "above the limit")
    assert (fat.user_attrs["feasible"], fat.user_attrs["violated"]) == (False, "peak_memory_gb <= 0.6 (0.9)")
    assert max(good.system_attrs["constraints"]) <= 0 < min(max(t.system_attrs["constraints"]) for t in (lost, fat))


def test_the_sampler_sees_indices_and_no_constraint_twice(finished: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = finished
    limits = (parse("peak_memory_gb <= 0.6"),)
    again = Proposals(open_storage(folder), "s", search(constraints=limits), space(), (), rows)
    assert all(isinstance(t.distributions["expert_bits"], optuna.distributions.IntDistribution) for t in again.trials)
    assert all(set(t.constraints) == {"possible", "peak_memory_gb <= 0.6"} for t in again.trials)


def test_the_proposals_are_those_of_a_study_that_holds_indices() -> None:
    """The same sampler on plain Optuna, with an index for the ordinal knob. Only a float differs, by its rounding."""
    rows: list[dict[str, Any]] = []
    asked = Proposals(InMemoryStorage(), "s", search(), space(), (), rows)
    plain = optuna.create_study(directions=[*OBJECTIVES.values()])
    for count in range(20):
        proposal = asked.ask()
        assert proposal.seed is not None
        plain.sampler = sampler_for(
            "tpe", {}, seed=proposal.seed, space_flat=True, trials_so_far=count, objectives=3, torch=False
        )[0]
        trial = plain.ask()
        values = space().suggest(trial)
        assert values.pop("cache_gb") == pytest.approx(proposal.values["cache_gb"], rel=1e-3)
        assert values == {n: v for n, v in proposal.values.items() if n != "cache_gb"}
        rows.append(row_of(proposal))
        asked.tell(rows[-1], rows)
        plain.tell(trial, [rows[-1][name] for name in OBJECTIVES])


def test_a_study_of_an_earlier_version_is_converted_and_continues(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    storage = open_storage(tmp_path)
    old = optuna.create_study(study_name="s", storage=storage, directions=[*OBJECTIVES.values()])
    old.set_user_attr("first", 1)
    for bits in (2, 0):
        old.enqueue_trial({"cache_gb": 0.02, "read_threads": 2, "expert_bits": bits}, user_attrs={"origin": "anchor"})
    trial = old.ask()
    space().suggest(trial)
    trial.set_user_attr("trial", 1)
    old.tell(trial, [1.0, 0.5, 17.0])
    rows.append(row_of(Proposal(1, "anchor", space().values(trial.params))))
    asked = Proposals(open_storage(tmp_path), "s", search(), space(), (), rows)
    go_on(asked, rows, 4)
    assert [r["expert_bits"] for r in rows[:2]] == [8, 3]
    stored = read(f"sqlite:///{tmp_path / 'study.db'}")
    assert [t.params["expert_bits"] for t in stored.trials] == [r["expert_bits"] for r in rows]
    assert stored.user_attrs["params"] == "values"
