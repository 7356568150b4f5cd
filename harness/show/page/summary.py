"""Summary: everything that a report shows of a study, computed once for terminal, plots, page and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from engine.system.strict_json import from_json
from harness.analysis.counts import Counts, count
from harness.analysis.importance import Importance, importance
from harness.analysis.pareto import Analysis, reference
from harness.analysis.runs.hours import NEEDED, Hours, hours
from harness.decisions.recommend import Choice, Named, default_trial, named, recommended, rules_of, wishes_of
from harness.results.rows import frame
from harness.study.titles import FACTS, title


class Summary:
    """Analysis, recommendations and importance of the rows in a study's folder, each computed on first use."""

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        self.folder, self.df = folder, frame(rows)
        self.found = Analysis(self.df, **rules_of(folder))

    @cached_property
    def name(self) -> str:
        names = self.df["study"].dropna()
        return str(names.iloc[0]) if len(names) else self.folder.name

    @cached_property
    def title(self) -> str:
        """Model and machine of the rows; empty without rows that name them."""
        known = len(self.df) and self.df["model"].notna().any()
        return title({name: self.df[name] for name in FACTS}) if known else ""

    @cached_property
    def counts(self) -> Counts:
        return count(self.df)

    @property
    def objectives(self) -> list[str]:
        return list(self.found.objectives)

    @cached_property
    def standings(self) -> pd.DataFrame:
        return self.found.standings if len(self.df) else self.df.assign(standing=None, confirmed=None)

    @cached_property
    def front(self) -> pd.DataFrame:
        return self.standings[self.standings["standing"] == "front"]

    @cached_property
    def reference(self) -> pd.DataFrame:
        """One line, or none without figures for all objectives."""
        if not len(self.df):
            return self.df
        resident = reference(self.found)
        return resident[resident[self.objectives].notna().all(axis=1)]

    @cached_property
    def default(self) -> int | None:
        return default_trial(self.df)

    @cached_property
    def choices(self) -> list[Choice]:
        """The recommended settings; empty without a front."""
        return recommended(self.found, **wishes_of(self.folder)) if len(self.front) else []

    @cached_property
    def named(self) -> list[Named]:
        """Recommended settings, default and reference, with their estimates; empty without measured rows."""
        return named(self.found, self.choices) if len(self.df) else []

    @cached_property
    def used(self) -> dict[int, list[str]]:
        """Recommended trials with the names of their rules."""
        names: dict[int, list[str]] = {}
        for choice in self.choices:
            if choice.trial is not None:
                names.setdefault(choice.trial, []).append(choice.name)
        return names

    @cached_property
    def importance(self) -> Importance:
        return importance(self.found) if len(self.df) else Importance(0)

    @cached_property
    def hours(self) -> Hours:
        """Where the time went. The state file has the clock of the newest session, which continues after its last row."""
        state = _json(self.folder / "state.json")
        return hours(self.df[list(NEEDED)].to_dict("records"), state.get("session"), state.get("session_s"))

    @cached_property
    def last_error(self) -> str:
        """Why there is no front: the newest reason in the rows."""
        reasons = self.df["status_reason"].dropna()
        return str(reasons.iloc[-1]) if len(reasons) else "no streamed trial has run"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The study's manifest; empty without a readable one."""
        return _json(self.folder / "manifest.json")

    @property
    def config(self) -> dict[str, Any]:
        config = self.manifest.get("config")
        return config if isinstance(config, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    """The document of a file; empty without a readable one."""
    try:
        found = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
