"""End of a round: verdict and journal on disk, and the base of the next space."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from harness.rounds.verdict import Verdict
from harness.session import conclude as module


def test_a_round_that_is_not_kept_gives_its_base_to_the_next(
    session: Callable[..., pd.DataFrame], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ((True, "first"), (False, "no gain"), (True, "gain"))
    verdicts = iter([Verdict(kept, 1.0, 1.0, 0.1, evidence) for kept, evidence in results])
    monkeypatch.setattr(module, "verdict", lambda before, after: next(verdicts))
    session("rounds=3", "budget.trials=3", "sampler.name=random")
    folder = place / "results" / "demo"
    ends = [json.loads((folder / "rounds" / n / "verdict.json").read_text()) for n in ("01", "02", "03")]
    assert [(e["kept"], e["evidence"], e["base"]) for e in ends] == [
        (True, "first", 1), (False, "no gain", 1), (True, "gain", 3)
    ]  # fmt: skip
    assert (folder / "journal.md").read_text().count("\n## Round ") == 3
