"""Estimates: one line for each trial, which combines its runs into an estimate and a 95 % interval of every metric.

All metrics are on a log scale, because noise is proportional to the figure. The run-to-run standard deviation of a metric
is pooled over all trials with several good runs. Residuals are clipped at `CLIP` of it, so that one hiccup does not widen
all intervals, and a prior worth `PRIOR_RUNS` degrees of freedom is added. A trial that ran once has an interval too.

A trial becomes a candidate because its first run was fast, so that run is biased. With two or more fresh runs, only these
are used: they have no such bias and need no weighting. With one fresh run both are used, because half the bias costs less
than twice the variance. Fresh runs are the good runs after a trial's first, except those of `protocol.repeats`, which are
made before any selection. `python -m harness.bench confirm` measures the effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from harness.numerics.student_t import t_quantile
from harness.results.metrics import METRICS, PRIOR_NOISE

if TYPE_CHECKING:
    import pandas as pd

PRIOR_RUNS = 3.0
CLIP = 2.5
WINSOR = 1.5  # standard deviations from the median at which a run is clipped, if there are three or more
COLUMNS = (
    "trial",
    "origin",
    "round",
    "proposer",
    "hit_rate",
    "predicted_peak_gb",
    "perplexity_at_most",
    *Knobs.names(),
    "removed_knobs",
)


def estimates(df: pd.DataFrame) -> pd.DataFrame:
    """The estimates of all trials with an `ok` run, indexed by trial number in ascending order.

    `df` has rows as `read_trials` gives them. Columns: `COLUMNS` of the trial's first row; for every metric the estimate,
    `_low`, `_high` and `_rel_se` (standard error of the logarithm); `runs` (good ones); `fresh_runs`; `feasible` (in most
    good runs; true without constraints); `suspect` (the trial has no good run).
    """
    import pandas as pd

    rows = _ok(df)
    trials = rows.trial[rows.first]
    first = df[[name for name in COLUMNS if name in df]].iloc[rows.place[rows.first]]
    first = first.set_axis(trials).reindex(columns=list(COLUMNS))
    first["origin"] = df["origin"].array.take(_origins(df, trials))
    count = len(first)
    of = rows.first.cumsum() - 1  # each row's trial, by its place in the result
    runs = np.bincount(of[rows.good], minlength=count)
    used = rows.good | (runs == 0)[of]  # suspect runs count only alone
    begin = np.flatnonzero(np.diff(of[used], prepend=-1))
    out: dict[str, np.ndarray] = {
        "runs": runs, "fresh_runs": np.bincount(of[rows.fresh], minlength=count),
        "feasible": np.bincount(of[used], rows.feasible[used], count) > np.bincount(of[used], minlength=count) / 2,
        "suspect": runs == 0,
    }  # fmt: skip
    fresh, pooled = np.split(rows.fresh[used], begin[1:]), _noise(rows)
    for metric in METRICS:
        sd, values = float(pooled.loc[metric, "sd"]), rows.figures(metric)[used]
        found = [_estimate(some, again, sd) for some, again in zip(np.split(values, begin[1:]), fresh, strict=True)]
        estimate, se = np.array(found[:count], float).reshape(-1, 2).T
        half = t_quantile(0.975, pooled.loc[metric, "degrees"]) * se
        if f"{metric}_low" in df:  # a single run: its own interval, if that is wider
            low, high = (_known(rows.figures(f"{metric}_{end}")[used], begin) for end in ("low", "high"))
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = np.log(high / low) / 2
            half = np.where((inside > half) & (runs <= 1), inside, half)
        out |= {metric: estimate, f"{metric}_low": estimate * np.exp(-half), f"{metric}_high": estimate * np.exp(half)}
        out[f"{metric}_rel_se"] = se
    return pd.concat([first, pd.DataFrame(out, first.index)], axis=1)


def noise(df: pd.DataFrame) -> pd.DataFrame:
    """The relative run-to-run standard deviation of every metric.

    Index metric; columns `sd`, `degrees` (of freedom, including the prior's) and `runs` (the number of runs it is based on).
    """
    return _noise(_ok(df))


def suspects(df: pd.DataFrame) -> list[int]:
    """Trials whose `ok` and `stopped` runs are all suspect: they should be measured again on an idle machine."""
    doubtful = df["status"].isin(["ok", "stopped"])
    bad = suspect_runs(df)
    return sorted({int(t) for t in df.loc[doubtful & bad, "trial"]} - {int(t) for t in df.loc[doubtful & ~bad, "trial"]})


def suspect_runs(df: pd.DataFrame) -> pd.Series:
    """Which rows are suspect: marked so, or measured from the sentinel run before one that drifted up to that one.

    The order is that of the sequence numbers; rows of older versions have times alone.
    """
    import pandas as pd

    bad = df["suspect"].notna() if "suspect" in df else pd.Series(False, df.index)
    if "drift_since" in df:
        wanted = [n for n in ("drift_since", "drift_sequence", "sequence", "started_at", "machine") if n in df]
        drifted = df["drift_since"].notna()
        for sentinel in df.loc[drifted, wanted].itertuples() if drifted.any() else ():
            first, last = getattr(sentinel, "drift_sequence", None), getattr(sentinel, "sequence", None)
            if pd.notna(first) and pd.notna(last):
                between = df["sequence"].between(first, last)
            else:
                between = df["started_at"].between(sentinel.drift_since, sentinel.started_at)
            bad |= (df["machine"] == sentinel.machine) & between
    return bad.astype(bool)


@dataclass(frozen=True)
class _Rows:
    """The `ok` rows of a table by trial and run, as arrays (rows,)."""

    df: pd.DataFrame
    place: np.ndarray  # in `df`
    trial: np.ndarray
    good: np.ndarray  # bool: not suspect
    fresh: np.ndarray  # bool: good, after the trial's first good run, and no repetition
    feasible: np.ndarray  # 1.0 or 0.0

    @cached_property
    def first(self) -> np.ndarray:
        """Whether a row is the first of its trial."""
        return _first(self.trial)

    def figures(self, column: str) -> np.ndarray:
        """A column of figures, NaN where they are unknown."""
        if column not in self.df:
            return np.full(len(self.place), np.nan)
        return self.df[column].to_numpy(float, na_value=np.nan)[self.place]


def _ok(df: pd.DataFrame) -> _Rows:
    """The `ok` rows; columns that version 1 lacks are filled in."""
    every = df["trial"].to_numpy()
    run = df["run"].fillna(0).to_numpy(float) if "run" in df else np.zeros(len(df))
    place = np.lexsort((run, every.astype(float)))
    place = place[(df["status"] == "ok").to_numpy(bool)[place]]
    trial, good = every[place], ~suspect_runs(df).to_numpy()[place]
    again = np.zeros(len(place), bool)
    again[good] = ~_first(trial[good])
    feasible = np.ones(len(place))
    if "feasible" in df:
        feasible = df["feasible"].iloc[place].map({True: 1.0, False: 0.0}).fillna(1.0).to_numpy(float)
    fresh = again & (df["origin"] != "repeat").to_numpy(bool)[place]
    return _Rows(df, place, trial, good, fresh, feasible)


def _first(trial: np.ndarray) -> np.ndarray:
    """Which entries of an ordered array are the first of their value: bool."""
    return np.concatenate([np.ones(min(1, len(trial)), bool), trial[1:] != trial[:-1]])


def _origins(df: pd.DataFrame, trials: np.ndarray) -> np.ndarray:
    """The place in `df` of each trial's run 0, whatever its status."""
    every = df["trial"].to_numpy()
    run = df["run"].to_numpy(float, na_value=np.nan) if "run" in df else np.zeros(len(df))
    order = np.lexsort((run, every.astype(float)))
    order = order[_first(every[order])]
    return order[np.searchsorted(every[order], trials)]


def _known(values: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """The first value of each group that is not NaN; NaN if there is none. `begin`: where each group begins."""
    if not len(values):
        return values
    at = np.minimum.reduceat(np.where(np.isnan(values), len(values), np.arange(len(values))), begin)
    return np.append(values, np.nan)[at]


def _noise(every: _Rows) -> pd.DataFrame:
    import pandas as pd

    trial, good = every.trial[every.good], every.fresh[every.good]
    trials = _first(trial).cumsum() - 1
    count, fresh = np.bincount(trials)[trials], np.bincount(trials, good)[trials]
    # Compare runs without selection bias: fresh ones if there are two. A first run and one fresh run differ by that bias.
    some = (count > 1) & (fresh != 1) & (good | (fresh == 0))
    trials = np.unique(trials[some], return_inverse=True)[1]
    found = {m: _pooled(trials, every.figures(m)[every.good][some], PRIOR_NOISE[m]) for m in METRICS}
    return pd.DataFrame.from_dict(found, orient="index", columns=["sd", "degrees", "runs"])


def _pooled(trials: np.ndarray, values: np.ndarray, prior: float) -> tuple[float, float, int]:
    trials, logs = trials[values > 0], np.log(values[values > 0])
    count = np.bincount(trials)[trials]
    trials, logs, count = trials[count > 1], logs[count > 1], count[count > 1]
    if not len(logs):
        return prior, PRIOR_RUNS, 0
    degrees = len(logs) - len(np.unique(trials))
    middle = (np.bincount(trials, logs) / np.maximum(np.bincount(trials), 1))[trials]
    residuals = np.abs(logs - middle) * np.sqrt(count / (count - 1))
    spread = 1.4826 * float(np.median(residuals))
    clipped = residuals.clip(max=CLIP * spread) if spread > 0 else residuals
    mean_square = float((clipped**2).mean())  # a residual has (count - 1) / count degrees of freedom
    sd = np.sqrt((PRIOR_RUNS * prior**2 + degrees * mean_square) / (PRIOR_RUNS + degrees))
    return float(sd), PRIOR_RUNS + degrees, len(logs)


def _estimate(values: np.ndarray, fresh: np.ndarray, sd: float) -> tuple[float, float]:
    """A trial's estimate and the standard error of its logarithm, from its runs in order, without nulls."""
    values, fresh = values[known := ~np.isnan(values)], fresh[known]
    values = values[fresh] if fresh.sum() >= 2 else values
    if len(values) < 2:
        return (values[0], sd) if len(values) else (np.nan, np.nan)
    return _centre(values, sd), sd / np.sqrt(len(values))


def _centre(values: Any, sd: float) -> float:
    """The mean of the logarithms with outliers clipped; the median if a figure has no logarithm."""
    if (values <= 0).any() or (values == values[0]).all():
        return float(np.median(values))
    logs = np.log(values)
    if len(logs) > 2:
        middle = np.median(logs)
        logs = logs.clip(middle - WINSOR * sd, middle + WINSOR * sd)
    return float(np.exp(logs.mean()))
