"""Points: a trial with all its runs put together, every metric as an estimate with a 95 % interval.

Everything is on a log scale, for noise is a share of the figure: a metric's run-to-run standard deviation is pooled over
all trials with several good runs, residuals clipped at `CLIP` of it so that a hiccup does not widen everything, and begins
with a prior worth `PRIOR_RUNS` degrees of freedom. So a trial that ran once has an interval as well.

The run that made a trial a candidate was lucky more often than not, so a point with two or more fresh runs is estimated
from these alone: they cost no more than runs, they cannot have the first one's luck, and no weight has to be justified.
With one fresh run, both are used: half the luck is a lesser evil than twice the variance. Fresh are the good runs after a
trial's first, but not those of `protocol.repeats`, which were made before anyone had chosen. `python -m harness.bench
confirm` shows what it is worth.
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
WINSOR = 1.5  # standard deviations from the median beyond which a run counts as that far, among three or more
NEEDED = ("trial", "run", "status", "origin", "feasible", *(f"{m}{end}" for m in METRICS for end in ("", "_low", "_high")))
KEPT = ("trial", "origin", "round", "proposer", "hit_rate", "predicted_peak_gb", *Knobs.names(), "removed_knobs")


def points(df: pd.DataFrame) -> pd.DataFrame:
    """One line a trial that has an `ok` run, indexed by trial number in ascending order.

    `df`: rows as `read_trials` gives them, of any version. Columns: `KEPT` of the trial's first row, for every metric the
    estimate, `_low`, `_high` and `_rel_se` (standard error of its logarithm), `runs` (good ones), `fresh_runs`, `feasible`
    (most good runs say so; true without constraints) and `suspect` (no good run: measure it again).
    """
    import pandas as pd

    df = df.reset_index(drop=True)
    rows = _ok(df)
    good = ~rows["suspect_run"]
    pooled = _noise(rows[good])
    first = df.loc[rows.drop_duplicates("trial").index].set_index("trial", drop=False).rename_axis(None)
    out = first.reindex(columns=list(KEPT))
    out["origin"] = _origins(df).reindex(out.index)
    used = pd.concat([rows[good], rows[~rows["trial"].isin(rows.loc[good, "trial"])]])  # suspect ones if there are no others
    groups = used.groupby("trial")
    places = groups.indices
    counted = rows[good].groupby("trial")
    out["runs"] = counted.size().reindex(out.index, fill_value=0)
    out["fresh_runs"] = counted["fresh"].sum().reindex(out.index, fill_value=0).astype(int)
    out["feasible"] = groups["feasible"].mean().reindex(out.index) > 0.5
    out["suspect"] = out["runs"] == 0
    for metric in METRICS:
        sd, fresh, values = float(pooled.loc[metric, "sd"]), used["fresh"].to_numpy(), _figures(used, metric)
        found = {trial: _estimate(values[at], fresh[at], sd) for trial, at in places.items()}
        figures = pd.DataFrame.from_dict(found, orient="index", columns=["estimate", "se"], dtype=float).reindex(out.index)
        half = t_quantile(0.975, pooled.loc[metric, "degrees"]) * figures["se"]
        if f"{metric}_low" in used:  # the run's own interval, where it stands alone
            within = groups[[f"{metric}_low", f"{metric}_high"]].first().reindex(out.index)
            inside = np.log((within.iloc[:, 1] / within.iloc[:, 0]).astype(float)) / 2
            half = half.where(~(inside > half) | (out["runs"] > 1), inside)
        out[metric] = figures["estimate"]
        out[f"{metric}_low"], out[f"{metric}_high"] = out[metric] * np.exp(-half), out[metric] * np.exp(half)
        out[f"{metric}_rel_se"] = figures["se"]
    return out.sort_index()


def noise(df: pd.DataFrame) -> pd.DataFrame:
    """Relative run-to-run standard deviation of every metric: index metric, columns `sd`, `degrees` (of freedom, the prior's
    included) and `runs` (that it was found from)."""
    rows = _ok(df)
    return _noise(rows[~rows["suspect_run"]])


def suspects(df: pd.DataFrame) -> list[int]:
    """Trials with no good run that would have one, or be stopped for good, on a quiet machine: to be measured again."""
    doubtful = df["status"].isin(["ok", "stopped"])
    bad = suspect_runs(df)
    return sorted({int(t) for t in df.loc[doubtful & bad, "trial"]} - {int(t) for t in df.loc[doubtful & ~bad, "trial"]})


def suspect_runs(df: pd.DataFrame) -> pd.Series:
    """Which rows are not to be trusted: marked so, or covered by a sentinel that drifted (`drift_since` to its start)."""
    import pandas as pd

    bad = df["suspect"].notna() if "suspect" in df else pd.Series(False, df.index)
    if "drift_since" in df:
        for sentinel in df[df["drift_since"].notna()].itertuples():
            bad |= (df["machine"] == sentinel.machine) & df["started_at"].between(sentinel.drift_since, sentinel.started_at)
    return bad.astype(bool)


def _ok(df: pd.DataFrame) -> pd.DataFrame:
    """The rows with figures by trial and run, with `fresh` and `suspect_run`; what version 1 lacked is put in."""
    rows = df[[name for name in NEEDED if name in df]].assign(suspect_run=suspect_runs(df))
    rows["run"] = rows["run"].fillna(0) if "run" in rows else 0
    rows["feasible"] = rows["feasible"].map({True: 1.0, False: 0.0}).fillna(1.0) if "feasible" in rows else 1.0
    rows = rows[rows["status"] == "ok"].sort_values(["trial", "run"], kind="stable")
    good = ~rows["suspect_run"]
    again = rows[good]["trial"].duplicated().reindex(rows.index, fill_value=False)
    return rows.assign(fresh=again & (rows["origin"] != "repeat"))


def _origins(df: pd.DataFrame) -> pd.Series:
    """Who chose each trial's setting: the origin of its run 0, whatever became of it."""
    rows = df.sort_values(["trial", "run"], kind="stable") if "run" in df else df
    return rows.drop_duplicates("trial").set_index("trial")["origin"]


def _noise(good: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    by = good.groupby("trial")["fresh"]
    count, fresh = by.transform("size"), by.transform("sum")
    # Runs of one kind: the fresh ones if there are two. A first run and one fresh run are not, for the first one was lucky.
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
    mean_square = float((clipped**2).mean())  # each residual stands for (count - 1) / count degrees of freedom
    sd = np.sqrt((PRIOR_RUNS * prior**2 + degrees * mean_square) / (PRIOR_RUNS + degrees))
    return float(sd), PRIOR_RUNS + degrees, len(logs)


def _estimate(values: np.ndarray, fresh: np.ndarray, sd: float) -> tuple[float, float]:
    """A trial's estimate and its standard error (of the logarithm), from its runs in order; null figures are left out."""
    values, fresh = values[known := ~np.isnan(values)], fresh[known]
    values = values[fresh] if fresh.sum() >= 2 else values
    if len(values) < 2:
        return (values[0], sd) if len(values) else (np.nan, np.nan)
    return _centre(values, sd), sd / np.sqrt(len(values))


def _centre(values: Any, sd: float) -> float:
    """Mean of the logarithms, far runs drawn in; the median of figures that have none."""
    if (values <= 0).any() or (values == values[0]).all():
        return float(np.median(values))
    logs = np.log(values)
    if len(logs) > 2:
        middle = np.median(logs)
        logs = logs.clip(middle - WINSOR * sd, middle + WINSOR * sd)
    return float(np.exp(logs.mean()))
