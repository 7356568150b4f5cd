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
NEEDED = ("trial", "run", "status", "origin", "feasible", *(f"{m}{end}" for m in METRICS for end in ("", "_low", "_high")))
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

    df = df.reset_index(drop=True)
    rows = _ok(df)
    good = ~rows["suspect_run"]
    pooled = _noise(rows[good])
    first = df.loc[rows.drop_duplicates("trial").index].set_index("trial", drop=False).rename_axis(None)
    out = first.reindex(columns=list(COLUMNS))
    out["origin"] = _origins(df).reindex(out.index)
    used = pd.concat([rows[good], rows[~rows["trial"].isin(rows.loc[good, "trial"])]])  # suspect runs count only alone
    groups = used.groupby("trial")
    places = groups.indices
    counted = rows[good].groupby("trial")
    out["runs"] = counted.size().reindex(out.index, fill_value=0)
    out["fresh_runs"] = counted["fresh"].sum().reindex(out.index, fill_value=0).astype(int)
    out["feasible"] = groups["feasible"].mean().reindex(out.index) > 0.5
    out["suspect"] = out["runs"] == 0
    within = groups[[f"{m}{end}" for m in METRICS for end in ("_low", "_high") if f"{m}_low" in used]].first()
    within, single = within.reindex(out.index), (out["runs"] <= 1).to_numpy()
    fresh, figures = used["fresh"].to_numpy(), dict[str, np.ndarray]()
    for metric in METRICS:
        sd, values = float(pooled.loc[metric, "sd"]), _figures(used, metric)
        found = [_estimate(values[at], fresh[at], sd) for at in map(places.__getitem__, out.index)]
        estimate, se = np.array(found, float).reshape(-1, 2).T
        half = t_quantile(0.975, pooled.loc[metric, "degrees"]) * se
        if f"{metric}_low" in within:  # a single run: its own interval, if that is wider
            with np.errstate(divide="ignore", invalid="ignore"):
                inside = np.log(_figures(within, f"{metric}_high") / _figures(within, f"{metric}_low")) / 2
            half = np.where((inside > half) & single, inside, half)
        figures |= {metric: estimate, f"{metric}_low": estimate * np.exp(-half), f"{metric}_high": estimate * np.exp(half)}
        figures[f"{metric}_rel_se"] = se
    return pd.concat([out, pd.DataFrame(figures, out.index)], axis=1).sort_index()


def noise(df: pd.DataFrame) -> pd.DataFrame:
    """The relative run-to-run standard deviation of every metric.

    Index metric; columns `sd`, `degrees` (of freedom, including the prior's) and `runs` (the number of runs it is based on).
    """
    rows = _ok(df)
    return _noise(rows[~rows["suspect_run"]])


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
        for sentinel in df.loc[df["drift_since"].notna(), wanted].itertuples():
            first, last = getattr(sentinel, "drift_sequence", None), getattr(sentinel, "sequence", None)
            if pd.notna(first) and pd.notna(last):
                between = df["sequence"].between(first, last)
            else:
                between = df["started_at"].between(sentinel.drift_since, sentinel.started_at)
            bad |= (df["machine"] == sentinel.machine) & between
    return bad.astype(bool)


def _ok(df: pd.DataFrame) -> pd.DataFrame:
    """The `ok` rows by trial and run, with `fresh` and `suspect_run`; missing columns of version 1 are filled in."""
    rows = df[[name for name in NEEDED if name in df]].assign(suspect_run=suspect_runs(df))
    rows["run"] = rows["run"].fillna(0) if "run" in rows else 0
    rows["feasible"] = rows["feasible"].map({True: 1.0, False: 0.0}).fillna(1.0) if "feasible" in rows else 1.0
    rows = rows[rows["status"] == "ok"].sort_values(["trial", "run"], kind="stable")
    good = ~rows["suspect_run"]
    again = rows[good]["trial"].duplicated().reindex(rows.index, fill_value=False)
    return rows.assign(fresh=again & (rows["origin"] != "repeat"))


def _origins(df: pd.DataFrame) -> pd.Series:
    """The origin of each trial's run 0, whatever its status."""
    rows = df.sort_values(["trial", "run"], kind="stable") if "run" in df else df
    return rows.drop_duplicates("trial").set_index("trial")["origin"]


def _noise(good: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    by = good.groupby("trial")["fresh"]
    count, fresh = by.transform("size"), by.transform("sum")
    # Compare runs without selection bias: fresh ones if there are two. A first run and one fresh run differ by that bias.
    rows = good[(count > 1) & (fresh != 1) & (good["fresh"] | (fresh == 0))]
    trials = np.unique(rows["trial"].to_numpy(), return_inverse=True)[1]
    found = {metric: _pooled(trials, _figures(rows, metric), PRIOR_NOISE[metric]) for metric in METRICS}
    return pd.DataFrame.from_dict(found, orient="index", columns=["sd", "degrees", "runs"])


def _figures(rows: pd.DataFrame, metric: str) -> np.ndarray:
    return rows[metric].to_numpy(float, na_value=np.nan) if metric in rows else np.full(len(rows), np.nan)


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
