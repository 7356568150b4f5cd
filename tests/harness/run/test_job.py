"""Jobs: the name of a run's log, and what counts as a new setting."""

from __future__ import annotations

from harness.propose.ask_tell import Proposal
from harness.run.job import Job


def test_names_and_new_settings() -> None:
    new, reference = Job(Proposal(12, "sampler", {})), Job(Proposal(0, "reference", {}))
    again = Job(Proposal(12, "sampler", {}), run=3, origin="confirm")
    assert [job.name for job in (new, reference, again)] == ["000012-00", "000000-00", "000012-03"]
    assert [job.is_new for job in (new, reference, again)] == [True, False, False]
