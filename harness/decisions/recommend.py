"""Recommended settings: the settings that most users want, each chosen by a rule that is printed with it.

    fastest_lossless     the fastest that changes neither a weight nor a choice of an expert: the model's own quality
    fastest              the fastest with a perplexity at most `max_loss` above the model's own
    least_memory         the least memory within that loss, at `speed_share` of the speed of `fastest` or more
    fastest_in_memory    the fastest within that loss whose process stays within `memory_gb`; only if that is set

They are chosen by estimates from the front and the undecided trials. Among several within `within` of the fastest, those
with enough fresh runs come first. A recommended setting is confirmed if it has `runs` fresh runs, and the probability that
its rule truly selects another setting (faster by more than `within`) is at most `error`. If its prompts were restored, a
confirmation run has to compute them as well.

Two more settings are always shown with these: the `default` (the first anchor: every knob at its default or the nearest
value in the space) and the `reference` (everything resident).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from engine.knobs import LOSSY
from engine.measure.protocol import REAL, RESTORED, UNTIMED
from engine.system.strict_json import from_json
from harness.analysis.estimates import noise
from harness.analysis.pareto import EQUAL, ERROR, RUNS, WITHIN, Analysis, Duels, Rows, analysed, measured, reference
from harness.numerics.student_t import t_quantile
from harness.results.metrics import METRICS, SPEEDS

if TYPE_CHECKING:
    import pandas as pd

MAX_LOSS, SPEED_SHARE = 0.01, 0.9  # defaults of the study's `recommend` group
SAME = 1e-7  # per cent; perplexities that differ by less are equal
MOST = 3  # times `runs` fresh runs: further runs would not decide either


@dataclass(frozen=True)
class Choice:
    """A recommended setting: the trial that its rule selects, or the reason why there is none."""

    name: str
    rule: str
    trial: int | None = None
    reason: str = ""  # why the rule selects no trial
    doubt: float = 1.0  # probability that the rule truly selects another setting
    confirmed: bool = False
    rivals: tuple[int, ...] = ()  # trials that may be the truly selected one, likeliest first


def rules_of(folder: Path) -> dict[str, Any]:
    """The study's rules of confirmation, arguments of `front`; empty without a manifest that has them."""
    return _config(folder, "confirm", ("runs", "within", "error"))


def wishes_of(folder: Path) -> dict[str, Any]:
    """The study's arguments of `recommended`, including its rules of confirmation."""
    return rules_of(folder) | _config(folder, "recommend", ("max_loss", "speed_share", "memory_gb"))


def _config(folder: Path, group: str, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        given = from_json((folder / "manifest.json").read_text())["config"][group]
        return {name: given[name] for name in names}
    except (OSError, ValueError, KeyError):
        return {}


def default_trial(df: pd.DataFrame) -> int | None:
    """The trial of the default setting, which is the first anchor. None if the study has no anchor."""
    anchors = df.loc[(df["origin"] == "anchor") & (df["run"].fillna(0) == 0), "trial"]
    return int(anchors.min()) if len(anchors) else None


def speed_of(objectives: Iterable[str]) -> str:
    """The speed that recommendations compare: the first objective that is a speed, else decode_tok_s."""
    return next((name for name in objectives if name in SPEEDS), "decode_tok_s")


def recommended(
    rows: Rows,
    *,
    max_loss: float = MAX_LOSS,
    speed_share: float = SPEED_SHARE,
    memory_gb: float | None = None,
    runs: int = RUNS,
    within: float = WITHIN,
    error: float = ERROR,
) -> list[Choice]:
    """The recommended settings of a study's rows, in the order of the module's list; empty without measured trials."""
    found = analysed(rows, runs=runs, within=within, error=error)
    every = found.measured
    if every.empty:
        return []
    own = _own_perplexity(found)
    lossless = _lossless(every)
    # Where scoring ended early, the upper end of the interval counts until a confirmation run completes it.
    most = every["perplexity"].fillna(every["perplexity_at_most"].astype(float))
    close = (most <= own * (1 + max_loss) * (1 + 1e-9)).to_numpy() if own is not None else lossless
    small = (every["peak_memory_gb"] <= memory_gb).to_numpy() if memory_gb is not None else close
    loss = (
        f"perplexity at most {100 * max_loss:.3g} % above the model's own"
        if own is not None
        else "lossless, because no perplexity was measured"
    )
    race = _Race(found)
    best = race.fastest("fastest", f"fastest, {loss}", close)
    choices = [race.fastest("fastest_lossless", "fastest with the model's own quality (lossless)", lossless), best]
    rule = f"least memory with at least {100 * speed_share:.3g} % of the speed of fastest, {loss}"
    choices.append(race.least_memory("least_memory", rule, close, best, speed_share))
    if memory_gb is not None:
        rule = f"fastest within {memory_gb:g} GB, {loss}"
        choices.append(race.fastest("fastest_in_memory", rule, close & small))
    return choices


class _Race:
    """Comparisons of the measured trials by one speed."""

    def __init__(self, found: Analysis) -> None:
        objectives, every = list(found.objectives), found.measured
        speed = speed_of(objectives)
        self.every, self.error = every, found.error
        sign = 1.0 if METRICS[speed] == "maximize" else -1.0
        self.logs = sign * np.log(every[speed].to_numpy(float))
        self.duels = found.duels if speed in objectives else Duels(every, [speed, *objectives], found.within)
        self.drawn = -self.duels.drawn[:, :, 0]  # true speeds as logarithms, more is better: (draws, points)
        self.fresh = every["fresh_runs"].to_numpy() >= found.runs
        self.restored = every.index.isin(list(only_restored(found.df)))
        self.margin = float(np.log1p(found.within))

    def fastest(self, name: str, rule: str, eligible: np.ndarray) -> Choice:
        admitted = np.flatnonzero(eligible & np.isfinite(self.logs))
        if not len(admitted):
            return Choice(name, rule, reason="no measured setting meets the rule")
        some = self.duels.members(admitted)
        near = some[self.logs[some] >= self.logs[some].max() - self.margin]
        near = near[self.fresh[near]] if self.fresh[near].any() else near
        chosen = int(near[np.argmax(self.logs[near])])
        others = admitted[admitted != chosen]
        return self._choice(name, rule, chosen, others, self.drawn[:, others] > self.drawn[:, [chosen]] + self.margin)

    def least_memory(self, name: str, rule: str, eligible: np.ndarray, best: Choice, share: float) -> Choice:
        if best.trial is None:
            return Choice(name, rule, reason=best.reason)
        top = self.every.index.get_loc(best.trial)
        some = self.duels.members(np.flatnonzero(eligible & (self.logs >= self.logs[top] + np.log(share))))
        chosen = int(some[np.argmin(self.every["peak_memory_gb"].to_numpy()[some])])
        slower = self.drawn[:, [chosen]] < self.drawn[:, [top]] + np.log(share) - self.margin
        return self._choice(name, rule, chosen, np.array([top]), slower)

    def _choice(self, name: str, rule: str, chosen: int, others: np.ndarray, ahead: np.ndarray) -> Choice:
        """ahead: bool (draws, others), where the rule truly selects another setting."""
        doubt = float(ahead.any(axis=1).mean()) if len(others) else 0.0
        chances = ahead.mean(axis=0)
        order = others[np.argsort(-chances, kind="stable")[: (chances > self.error / 4).sum()]]
        sure = bool(self.fresh[chosen] and not self.restored[chosen] and doubt <= self.error)
        index = self.every.index
        return Choice(name, rule, int(index[chosen]), "", doubt, sure, tuple(int(index[i]) for i in order))


def _lossless(points: pd.DataFrame) -> np.ndarray:
    """Which points have no lossy knob in effect: bool (points)."""
    default = Knobs().as_dict()
    plain = [points[n].isna() if default[n] is None else points[n].isna() | (points[n] == default[n]) for n in LOSSY]
    return np.logical_and.reduce([p.to_numpy(bool) for p in plain])


def _own_perplexity(found: Analysis) -> float | None:
    """The perplexity of the unchanged model: the reference's, else a lossless setting's; None if unknown."""
    every = found.measured
    known = [*reference(found)["perplexity"].dropna(), *every["perplexity"][_lossless(every)].dropna()]
    return float(known[0]) if known else None


def only_restored(df: pd.DataFrame) -> set[int]:
    """The trials with restored prompts and no confirmation run that computed them."""
    if "prefill" not in df:
        return set()
    real = df.loc[(df["prefill"] == REAL) & (df["origin"] == "confirm") & (df["status"] == "ok"), "trial"]
    return set(df.loc[df["prefill"].isin([RESTORED, UNTIMED]), "trial"]) - set(real)


def to_confirm(choices: Sequence[Choice], df: pd.DataFrame, runs: int = RUNS) -> list[int]:
    """The trials to measure again for the recommendations, most urgent first.

    The default and recommended settings without `runs` fresh runs come first, with those recommended settings whose prompts
    no confirmation run has computed. The trials and likeliest rivals of unconfirmed
    recommendations follow, up to `MOST` times `runs` fresh runs each.
    """
    fresh = measured(df)["fresh_runs"]
    default = default_trial(df)
    names = [
        *([default] if default is not None and default in fresh.index else []),
        *(c.trial for c in choices if c.trial is not None),
    ]
    restored = only_restored(df) & {c.trial for c in choices}
    lacking = [t for t in names if fresh[t] < runs or t in restored]
    unsure = [t for c in choices if not c.confirmed and c.trial is not None for t in (c.trial, *c.rivals[:2])]
    return list(dict.fromkeys([*lacking, *(t for t in unsure if fresh[t] < MOST * runs)]))


Named = tuple[str, "pd.Series | None", Choice | None]


def named(given: Rows, choices: Sequence[Choice]) -> list[Named]:
    """(name, estimates, choice) of each recommended setting, then of default and reference, which have no choice.

    The estimates are None if no trial meets the rule, or if default or reference was not measured.
    """
    found = analysed(given)
    every, resident, default = found.measured, reference(found), default_trial(found.df)
    rows: list[Named] = [(c.name, None if c.trial is None else every.loc[c.trial], c) for c in choices]
    rows.append(("default", every.loc[default] if default in every.index else None, None))
    rows.append(("reference", resident.iloc[0] if len(resident) else None, None))
    return rows


def ratio(rows: Rows, point: pd.Series, other: pd.Series) -> tuple[float, float, float]:
    """The speed of `point` divided by that of `other`, and the ends of its 95 % interval."""
    found = analysed(rows)
    speed = speed_of(found.objectives)
    sign = 1.0 if METRICS[speed] == "maximize" else -1.0
    middle = sign * float(np.log(point[speed] / other[speed]))
    t = t_quantile(0.975, noise(found.df).loc[speed, "degrees"])
    half = t * float(np.hypot(point[f"{speed}_rel_se"], other[f"{speed}_rel_se"]))
    low, middle, high = np.exp([middle - half, middle, middle + half])
    return float(middle), float(low), float(high)


def compared(rows: Rows, point: pd.Series, other: pd.Series, name: str = "the default") -> str:
    """`2.6x (2.3 .. 2.9) the default, same perplexity, +10 MB`."""
    if point["trial"] == other["trial"]:
        return f"{name} itself"
    middle, low, high = ratio(rows, point, other)
    parts = [f"{middle:.2g}x ({low:.2g} .. {high:.2g}) {name}"]
    if np.isfinite([point["perplexity"], other["perplexity"]]).all():
        more = 100 * (point["perplexity"] / other["perplexity"] - 1)
        parts.append("same perplexity" if abs(more) < SAME else f"{more:+.2g} % perplexity")
    memory, other_memory = point["peak_memory_gb"], other["peak_memory_gb"]
    noise_gb = float(np.hypot(point["peak_memory_gb_rel_se"] * memory, other["peak_memory_gb_rel_se"] * other_memory))
    apart = memory - other_memory
    more_gb = f"{apart:+.2f} GB" if abs(apart) >= 1 else f"{1e3 * apart:+.0f} MB"
    parts.append("same memory" if abs(apart) <= EQUAL * noise_gb else more_gb)
    return ", ".join(parts)
