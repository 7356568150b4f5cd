"""External proposer: call it when it is due, offer its settings to Optuna, and store its changes for the end of the round.

Whatever it returns is data: refused parts become notes, and the session continues.
"""

from __future__ import annotations

from collections.abc import Callable

from harness import ConfigError
from harness.analysis.counts import count
from harness.analysis.pareto import front
from harness.propose.external import ask_external, study_state
from harness.results.history import History
from harness.rounds.round import ExternalChanges, Round, legal, rounds
from harness.study.study import Study


def call_due(study: Study, history: History) -> bool:
    """Whether `proposer.every` settings were measured here since the last call."""
    config = study.config["proposer"]
    if config["command"] is None:
        return False
    return _settings(history) - max(r.external_changes(study).asked for r in rounds(study)) >= config["every"]


def call(
    study: Study,
    one: Round,
    history: History,
    offer: Callable[[dict, str, str], bool],
    interrupted: Callable[[], bool],
    note: Callable[[str], None],
) -> None:
    """Call the proposer in round `one`. `offer` queues a setting with the proposer's command and note."""
    config = study.config["proposer"]
    request = study_state(
        study.name, study.objectives, [c.text for c in study.constraints], one.space, legal(study), history.known,
        [int(t) for t in front(history.table, **study.rules).index],
        {"trials": study.trials - count(history.known).trials},
    )  # fmt: skip
    answer = ask_external(config["command"], request, config["timeout_s"], one.space, legal(study), interrupted)
    refused = list(answer.refused)
    if answer.changes and one.number == study.rounds:
        refused.append(f"{len(answer.changes)} changes of the space: round {one.number} is the last (rounds={one.number})")
    offered = 0
    for values in answer.settings:
        try:
            offered += offer(values, config["command"], answer.note)
        except ConfigError as e:  # the setting fits the changed space, not the current one
            refused.append(str(e))
    before = one.external_changes(study)
    changes, all_refused = (*before.changes, *answer.changes), (*before.refused, *refused)
    one.save_external_changes(study, ExternalChanges(_settings(history), changes, all_refused))
    note(f"proposer: {offered} settings, {len(answer.changes)} changes, {len(refused)} refused")
    for line in refused:
        note(f"refused from the proposer: {line}")


def _settings(history: History) -> int:
    return sum(r["run"] == 0 for r in history.own)
