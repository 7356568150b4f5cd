"""External proposer in a session: its settings are measured, its changes apply in the next round, refusals are logged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd


def test_an_external_proposer_takes_part(session: Callable[..., pd.DataFrame], place: Path) -> None:
    (place / "propose.py").write_text(
        "import json, sys\n"
        "asked = json.load(sys.stdin)\n"
        "n = len(asked['rows'])\n"
        "print(json.dumps({'settings': [{'cache_gb': 0.01 + n / 1000, 'evict_half_life': 3.0}, {'evict_half_life': 999}],"
        " 'changes': [{'kind': 'fix', 'knob': 'read_threads', 'value': 4}], 'note': 'from outside'}))\n"
    )
    df = session(
        "budget.trials=14", "rounds=2", "proposer.every=5", f"proposer.command='{sys.executable} {place / 'propose.py'}'"
    )
    proposed = df[df["origin"] == "proposer"]
    assert len(proposed) >= 1
    assert (proposed["note"] == "from outside").all() and proposed["proposer"].str.contains("propose.py").all()
    log = (place / "results" / "demo" / "logs" / "search.log").read_text()
    assert "evict_half_life=999 is outside its search space" in log
    assert (df[df["round"] == 2]["read_threads"] == 4).mean() > 0.5
