"""Forecasts: the speeds that rows predicted before their runs, against those that were measured.

The first run of each setting counts: later ones are forecast when the setting has been measured before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORECAST = ("forecast_tok_s", "forecast_tok_s_low", "forecast_tok_s_high")


@dataclass(frozen=True)
class Checked:
    """How good the forecasts were. `median_error`: of |forecast / measurement - 1|; `inside`: 80 % intervals that hold."""

    trials: int
    median_error: float
    inside: int

    def __str__(self) -> str:
        settings = f"{self.trials} setting{'' if self.trials == 1 else 's'}"
        return (
            f"speed forecast before the first run of {settings}: median error {self.median_error:.1%}, "
            f"{self.inside} ({self.inside / self.trials:.0%}) inside the 80 % interval"
        )


def forecast_runs(df: pd.DataFrame) -> pd.DataFrame:
    """The first runs that were measured to their end and had a forecast."""
    if not len(df) or "forecast_tok_s" not in df:
        return df.iloc[:0]
    return df[
        (df["run"].fillna(0) == 0) & (df["status"] == "ok") & df["forecast_tok_s"].notna() & df["decode_tok_s"].notna()
    ]


def check_forecasts(df: pd.DataFrame) -> Checked | None:
    """The forecasts of a study's rows against its measurements; None without any."""
    rows = forecast_runs(df)
    if not len(rows):
        return None
    speed, middle, low, high = (rows[name].astype(float) for name in ("decode_tok_s", *FORECAST))
    inside = (low <= speed) & (speed <= high)
    return Checked(len(rows), float((middle / speed - 1).abs().median()), int(inside.sum()))
