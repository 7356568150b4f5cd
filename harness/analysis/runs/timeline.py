"""Timeline: the order of runs, and when each began since the first.

The order is that of the sequence numbers of a results folder, not of the wall clock, which may be set at any moment. Rows of
older versions have no number and come before, by their time. A set of rows from several machines has one order for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

LONGEST_GAP_S = 3600.0  # between two runs; a longer one (a pause of days, a clock that was set) counts as this


def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key that sorts rows of one results folder in the order of their runs."""
    started = row.get("started_at")
    return row.get("sequence") or 0, started is not None, started or 0


def since_first(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The rows with a start, in the order of their runs, and the seconds of each from its machine's first.

    A run begins when the one before has ended, or later by up to `LONGEST_GAP_S`, so no time is negative.
    """
    import pandas as pd

    rows = df[df["started_at"].notna()]
    number = rows["sequence"].fillna(0) if "sequence" in rows else pd.Series(0, rows.index)
    rows = rows.assign(_number=number).sort_values(["_number", "started_at"], kind="stable").drop(columns="_number")
    machines = rows["machine"].fillna("") if "machine" in rows else pd.Series("", rows.index)
    groups = rows.groupby(machines, sort=False)
    took = _seconds(rows, "wall_s", groups)
    between = groups["started_at"].diff().dt.total_seconds().fillna(0.0)
    step = between.clip(lower=took, upper=took + LONGEST_GAP_S)
    return rows, step.groupby(machines, sort=False).cumsum()


def _seconds(rows: pd.DataFrame, name: str, groups: Any) -> pd.Series:
    """A duration of the run before, in s; 0 if it has none."""
    import pandas as pd

    if name not in rows:
        return pd.Series(0.0, rows.index)
    return groups[name].shift().astype(float).fillna(0.0).clip(lower=0.0)
