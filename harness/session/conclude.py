"""End of a round: judge its result, write the journal, and propose the space of the next round."""

from __future__ import annotations

from harness.analysis.counts import count
from harness.analysis.findings import findings_of
from harness.results.history import History
from harness.rounds.journal import append, entry
from harness.rounds.next_space import next_space
from harness.rounds.repeat import round_command
from harness.rounds.round import Round, legal, rounds
from harness.rounds.verdict import verdict
from harness.space.changes import applied, still_possible
from harness.study.study import Study


def conclude(study: Study, one: Round, history: History) -> str:
    """Write the verdict and the journal of a round; returns the evidence. The next round starts from this round's space if
    it is kept, else from that of the last round that was kept, with the changes of the proposer and of the findings."""
    after = history.table
    before = after[after["round"] < one.number]
    found = verdict(before, after)
    base = one if found.kept else next((r for r in reversed(rounds(study)[:-1]) if _kept(r, study)), one)
    external = one.external_changes(study)
    changes = still_possible(external.changes, base.space, legal(study)) if one.number < study.rounds else []
    space = applied(base.space, changes)
    findings = findings_of(after, space, study.objectives)
    proposed = [*changes, *next_space(findings, space, legal(study))]  # after the last round, for one that may be added
    again = round_command(study, one.number, count([r for r in history.own if r["round"] == one.number]).trials)
    text = entry(
        one.number, one.changes, one.space, before, after, study.objectives, findings, found, proposed, again,
        external.refused, **study.rules,
    )  # fmt: skip
    append(study.folder, one.number, text)
    one.save_verdict(study, found.kept, found.evidence, base.number, proposed)
    return found.evidence


def _kept(one: Round, study: Study) -> bool:
    """Whether a round has ended and its space was kept."""
    ended = one.saved_verdict(study)
    return ended is not None and bool(ended["kept"])
