"""What to measure: one run of a proposed setting, and the rival that a new setting must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.propose.ask_tell import Proposal

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Run number `run` of a proposal in a round. `origin` is that of the run (repeat, sentinel, confirm, again); without
    one, the proposal's. `real_prefill`: its prompts are computed, whatever the study's protocol says."""

    proposal: Proposal
    run: int = 0
    origin: str = ""
    round: int = 1
    real_prefill: bool = False

    @property
    def name(self) -> str:
        """Trial and run as in the name of the run's log, `000012-00`."""
        return f"{self.proposal.trial:06d}-{self.run:02d}"

    @property
    def is_new(self) -> bool:
        """Whether this is the first run of a new setting: neither the reference nor a later run."""
        return not self.run and self.proposal.trial > 0


@dataclass(frozen=True)
class Rival:
    """The point that a new setting must beat: its trial, the lower end of its speed, and the relative standard deviation
    from run to run."""

    trial: int
    tok_s: float
    noise: float
