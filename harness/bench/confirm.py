"""Gain of confirmation: simulated studies on engines of known truth with injected noise, in this process.

    python -m harness.bench confirm --noise 0.1 --trials 120 --seeds 10

A point of the reported front is true unless, without noise, another measured setting is as good in all objectives and more
than 5 % faster. Hypervolume is that of the front's true figures, as a share of the best possible front of the measured
settings. One run in twenty is 30 % slower. Memory varies by 0.5 % from run to run, perplexity does not vary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from engine.cli.program import add_command
from engine.system.strict_json import to_json
from harness import ConfigError
from harness.analysis.hypervolume import volume
from harness.analysis.pareto import front, losses, nondominated
from harness.decisions.confirmation import next_sweep
from harness.results.metrics import METRICS, SPEEDS

Figures = dict[str, float]
KNOBS = (
    "cache_gb",
    "evict_half_life",
    "prefetch_depth",
    "read_block_kib",
    "read_threads",
    "hot_share",
)  # columns of the settings in the rows
BITS = (2, 3, 4, 6, 8)
DIMENSIONS = 6
WITHIN = 0.05


def cache(x: np.ndarray) -> Figures:
    """A streaming engine: cache, bits, and three I/O settings that only affect speed."""
    bits = BITS[min(4, int(x[0] * 5))]
    miss = (1 - x[1]) ** 1.5 * bits / 8
    waits = miss * (1 + 0.5 * abs(x[2] - 0.6) + 0.4 * abs(x[3] - 0.3)) / (0.4 + min(x[4], 0.6))
    return figures(100 / (1 + 9 * waits), 10 + 40 * x[1] * bits / 8, 4 + 12 * 2.0**-bits)


def dense(x: np.ndarray) -> Figures:
    """Nearly every setting trades speed for memory and perplexity: a large front."""
    idle = ((x[2:] - 0.5) ** 2).sum()
    return figures(20 * np.exp(1.2 * x[0] + 0.8 * x[1] - 0.2 * idle), 10 * np.exp(x[0]), 4 * np.exp(x[1]))


def sparse(x: np.ndarray) -> Figures:
    """Most settings waste both speed and memory: a small front."""
    idle = ((x[2:] - 0.5) ** 2).sum()
    return figures(40 * np.exp(0.5 * x[0] - 2 * idle), 10 * np.exp(x[0] + idle), 4 * np.exp(0.5 * (x[1] - x[0]) ** 2))


def lossless(x: np.ndarray) -> Figures:
    """A few sizes and qualities, each with many I/O settings of nearly equal speed."""
    size, quality = int(x[0] * 4), int(x[1] * 3)
    idle = ((x[2:] - 0.5) ** 2).sum()
    return figures(20 * np.exp(0.2 * size + 0.15 * quality - 0.5 * idle), 10 + 4 * size, 4 + quality)


def steps(x: np.ndarray) -> Figures:
    """Thresholds, a choice of three, and two settings with an interaction only; memory in steps."""
    bits, mode, ahead = BITS[min(4, int(x[0] * 5))], min(2, int(x[2] * 3)), x[3] > 0.45
    speed = 30 * (1 + 0.25 * (x[1] > 0.35) + 0.3 * (x[1] > 0.7) - 0.4 * (x[1] > 0.93)) / (0.5 + bits / 8)
    speed *= (
        (1.0, 1.12, 0.85)[mode] * (1.18 if ahead and mode != 1 else 0.97) * (1.1 if (x[4] > 0.5) != (x[5] > 0.6) else 0.93)
    )
    return figures(speed, 8 + 3 * int(x[1] * 8) * bits / 8, 4 + 12 * 2.0**-bits)


def rough(x: np.ndarray) -> Figures:
    """As `lossless`, but the effect of I/O settings on speed cannot be predicted from other settings."""
    size, quality = int(x[0] * 4), int(x[1] * 3)
    chance = np.random.default_rng(int(1e9 * x[2:].sum())).standard_normal()
    return figures(20 * np.exp(0.2 * size + 0.15 * quality + 0.12 * chance), 10 + 4 * size, 4 + quality)


def figures(speed: float, memory_gb: float, perplexity: float) -> Figures:
    return {"decode_tok_s": float(speed), "peak_memory_gb": float(memory_gb), "perplexity": float(perplexity)}


TRUTHS: dict[str, Callable[[np.ndarray], Figures]] = {f.__name__: f for f in (cache, dense, sparse, lossless, steps, rough)}


class Noise(NamedTuple):
    """Relative standard deviations, and the share of runs that are 30 % slower."""

    speed: float = 0.1
    hiccups: float = 0.05
    memory: float = 0.005


class Simulation:
    """Rows of a simulated study, without engine or storage: proposed settings, then confirmation runs."""

    def __init__(self, truth: str, objectives: Sequence[str], noise: Noise, trials: int, seed: int, sampler: str) -> None:
        self._rng = np.random.default_rng(seed)
        self._noise, self._objectives = noise, tuple(objectives)
        self._rows: list[dict[str, Any]] = []
        self.truths: list[Figures] = []
        self._settings: list[np.ndarray] = []
        propose = _propose(sampler, self._rng, seed, self._objectives)
        for trial in range(1, trials + 1):
            x, tell = propose()
            self.truths.append(TRUTHS[truth](x))
            self._settings.append(x)
            tell(self.run(trial, "sampler"))

    @property
    def rows(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    def run(self, trial: int, origin: str) -> Figures:
        """Add a run of a trial; returns its noisy figures."""
        seen = dict(self.truths[trial - 1])
        for name, figure in seen.items():
            sd = self._noise.speed if name in SPEEDS else self._noise.memory if name == "peak_memory_gb" else 0.0
            hiccup = 0.7 if name in SPEEDS and self._rng.random() < self._noise.hiccups else 1.0
            seen[name] = figure * hiccup * float(np.exp(sd * self._rng.standard_normal()))
        run = sum(row["trial"] == trial for row in self._rows)
        self._rows.append(
            {"trial": trial, "run": run, "status": "ok", "origin": origin, "eval_fingerprint": "truth", "suspect": None,
             "started_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=len(self._rows)),
             "objectives": ",".join(self._objectives), **dict(zip(KNOBS, self._settings[trial - 1], strict=True)), **seen}
        )  # fmt: skip
        return seen

    def confirm(self, budget: int) -> int:
        """Confirm until the front is stable or the budget is spent; returns the number of runs."""
        spent = sweep = 0
        while trials := next_sweep(self.rows, spent=spent, budget=budget, sweep=sweep):
            for trial in trials:
                self.run(trial, "confirm")
            spent, sweep = spent + len(trials), sweep + 1
        return spent

    def true_share(self, trials: Sequence[int]) -> float:
        """The share of `trials` that no measured setting truly beats by more than 5 % in speed."""
        logs = np.log(losses(pd.DataFrame(self.truths), self._objectives) * self._signs) * self._signs
        fast = np.array([name in SPEEDS for name in self._objectives])
        beaten = [
            ((logs <= logs[t - 1]).all(1) & (logs < logs[t - 1] - np.log1p(WITHIN))[:, fast].any(1)).any() for t in trials
        ]
        return 1 - float(np.mean(beaten)) if beaten else 1.0

    def true_volume(self, trials: Sequence[int]) -> float:
        """Hypervolume of the true figures of `trials`, as a share of that of all settings."""
        every = losses(pd.DataFrame(self.truths), self._objectives)
        corner = np.where(self._signs > 0, every.max(0) * 1.1, every.max(0) / 1.1)
        return volume(every[[t - 1 for t in trials]], corner) / volume(every, corner)

    @property
    def _signs(self) -> np.ndarray:
        return np.array([-1.0 if METRICS[name] == "maximize" else 1.0 for name in self._objectives])


Tell = Callable[[Figures], None]


def _propose(sampler: str, rng: np.random.Generator, seed: int, objectives: Sequence[str]) -> Callable[[], tuple[Any, Tell]]:
    if sampler == "random":
        return lambda: (rng.random(DIMENSIONS), lambda seen: None)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        directions=[METRICS[name] for name in objectives], sampler=optuna.samplers.TPESampler(seed=seed)
    )

    def propose() -> tuple[np.ndarray, Tell]:
        trial = study.ask()
        x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(DIMENSIONS)])

        def tell(seen: Figures) -> None:
            study.tell(trial, [seen[name] for name in objectives])

        return x, tell

    return propose


def compare(
    truth: str, objectives: Sequence[str], noise: Noise, trials: int, seed: int, share: float, sampler: str
) -> Figures:
    """One study before and after confirmation."""
    study = Simulation(truth, objectives, noise, trials, seed, sampler)
    single = study.rows
    before = plain_front(single, objectives)
    spent = study.confirm(round(share * trials))
    after = front(study.rows)
    sure = list(after.index[after["confirmed"]])
    return {
        "true_before": study.true_share(before), "true": study.true_share(list(after.index)),
        "true_confirmed": study.true_share(sure), "volume_before": study.true_volume(before),
        "volume": study.true_volume(list(after.index)), "size_before": len(before), "size": len(after),
        "confirmed": len(sure), "runs": spent,
    }  # fmt: skip


def plain_front(rows: pd.DataFrame, objectives: Sequence[str]) -> list[int]:
    """The front without a model of noise: the trials that no other beats by its single run."""
    return [int(t) for t in rows["trial"][nondominated(losses(rows, objectives))]]


def add(sub: Any) -> None:
    parser = add_command(sub, "confirm", run, __doc__)
    parser.add_argument("--noise", type=float, default=0.1, help="relative standard deviation of speed (default: 0.1)")
    parser.add_argument("--hiccups", type=float, default=0.05, help="share of runs 30 %% slower (default: 0.05)")
    parser.add_argument("--memory-noise", type=float, default=0.005, help="the same of memory (default: 0.005)")
    parser.add_argument("--trials", type=int, default=120, help="settings per study (default: 120)")
    parser.add_argument("--seeds", type=int, default=10, help="studies per truth (default: 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="first seed of these studies (default: 0)")
    parser.add_argument("--share", type=float, default=0.5, help="confirmation runs, as a share of trials (default: 0.5)")
    text = f"engine of known truth: {', '.join(TRUTHS)} or all (default: all)"
    parser.add_argument("--truth", choices=[*TRUTHS, "all"], default="all", metavar="NAME", help=text)
    parser.add_argument("--sampler", choices=["random", "tpe"], default="random", help="sampler (default: random)")
    parser.add_argument(
        "--objectives", default="decode_tok_s,peak_memory_gb,perplexity", help="two or three of them, separated by commas"
    )


def run(args: argparse.Namespace) -> None:
    """Print the table, then all figures as one line of JSON."""
    objectives = args.objectives.split(",")
    if unknown := [name for name in objectives if name not in ("decode_tok_s", "peak_memory_gb", "perplexity")]:
        raise ConfigError(f"--objectives {unknown[0]} is not a figure of these truths; they have "
                          "decode_tok_s, peak_memory_gb and perplexity")  # fmt: skip
    print(f"{args.trials} trials, {args.sampler}, {args.noise:.0%} noise on speed, objectives {args.objectives}")
    print("truth      true within 5 %: without   with (worst, below 0.9)  its confirmed   hypervolume  front (confirmed)")
    results = {}
    for truth in TRUTHS if args.truth == "all" else [args.truth]:
        seeds = range(args.first_seed, args.first_seed + args.seeds)
        noise = Noise(args.noise, args.hiccups, args.memory_noise)
        found = pd.DataFrame([compare(truth, objectives, noise, args.trials, s, args.share, args.sampler) for s in seeds])
        m = results[truth] = found.mean().to_dict() | {
            "true_worst": float(found["true"].min()), "below": float((found["true"] < 0.9).mean())
        }  # fmt: skip
        print(
            f"{truth:10} {m['true_before']:23.3f}  {m['true']:.3f} ({m['true_worst']:.3f}, {m['below']:9.0%})"
            f"  {m['true_confirmed']:13.3f}   {m['volume_before']:.3f} {m['volume']:.3f}"
            f"  {m['size']:9.1f} ({m['confirmed']:.1f})  {m['runs']:8.1f}",
            flush=True,
        )
    print(to_json({k: {n: round(v, 4) for n, v in m.items()} for k, m in results.items()}))
