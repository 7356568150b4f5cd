"""Samplers: hypervolume at equal budgets, on the fake engine of `truth`.

    python -m harness.bench samplers --seeds 5 --trials 200
    python -m harness.bench samplers --memory-limit 36 --trials 100

The figure is the hypervolume of the reported front, as a share of the best possible one. Samplers see noisy values; the
front counts with the true values of its members. Trials above a memory limit are lost: with `infeasible` they are reported
as in the search, complete with the worst values seen and a violated constraint, with `fail` as failed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import Trial, TrialState

from engine.cli.program import add_command
from engine.effective import effective
from engine.errors import did_you_mean
from engine.system.strict_json import to_json
from harness import ConfigError
from harness.analysis.pareto import nondominated
from harness.propose.samplers import has_torch, is_random_control, sampler_for, seed_for
from harness.results.metrics import OBJECTIVES
from harness.space.space import Space

from . import truth

MARKS = (25, 50, 100, 200)
RANDOM_EVERY = 10


@dataclass(frozen=True)
class Contender:
    """A way to search: a sampler for (seed, trials so far), with the search's encoding and anchors or with plain Optuna."""

    sampler: Callable[[int, int], optuna.samplers.BaseSampler]
    ours: bool
    reseeded: bool = True  # a new sampler for each trial, as in the search
    random_every: int = 0


def _named(name: str) -> Callable[[int, int], optuna.samplers.BaseSampler]:
    def sampler(seed: int, count: int) -> optuna.samplers.BaseSampler:
        return sampler_for(
            name, {}, seed=seed, space_flat=True, trials_so_far=count, objectives=3, torch=has_torch()
        )[0]  # fmt: skip

    return sampler


CONTENDERS = {
    "auto": Contender(_named("auto"), ours=True, random_every=RANDOM_EVERY),
    "gp": Contender(_named("gp"), ours=True),
    "tpe": Contender(_named("tpe"), ours=True),
    "plain-tpe": Contender(lambda seed, _: optuna.samplers.TPESampler(seed=seed), ours=False, reseeded=False),
    "plain-nsgaii": Contender(lambda seed, _: optuna.samplers.NSGAIISampler(seed=seed), ours=False, reseeded=False),
    "random": Contender(lambda seed, _: optuna.samplers.RandomSampler(seed=seed), ours=False, reseeded=False),
}


def add(sub: Any) -> None:
    parser = add_command(sub, "samplers", run, __doc__)
    names = list(CONTENDERS)
    parser.add_argument("--samplers", nargs="+", default=names, metavar="NAME", help=f"any of {', '.join(names)}")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="searches with each sampler (default: 5)")
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="trials of each search (default: 200)")
    parser.add_argument("--noise", type=float, default=0.04, metavar="X", help="relative noise of speed (default: 0.04)")
    parser.add_argument("--memory-limit", type=float, metavar="GB", help="trials above it are lost; 36 loses half")
    parser.add_argument(
        "--tell",
        nargs="+",
        choices=("infeasible", "fail"),
        default=["infeasible"],
        metavar="HOW",
        help="how the sampler learns of lost trials: infeasible (default), fail, or both",
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="searches in parallel (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every search's figures there")


def run(args: argparse.Namespace) -> None:
    for name in args.samplers:
        if name not in CONTENDERS:
            raise ConfigError(f"--samplers {name} is unknown; {did_you_mean(name, list(CONTENDERS))}")
    for option in ("seeds", "trials", "jobs"):
        if getattr(args, option) < 1:
            raise ConfigError(f"--{option} {getattr(args, option)} is below 1; raise it")
    names = list(args.samplers)
    if not has_torch() and "gp" in names:
        names.remove("gp")
        print("gp is left out: torch and SciPy are not installed (pip install -e '.[gp]')")
    limit = math.inf if args.memory_limit is None else args.memory_limit
    turns = [(n, tell, s, args.trials, args.noise, limit) for s in range(args.seeds) for n in names for tell in args.tell]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_search, *zip(*turns, strict=True)))
    if args.json:
        args.json.write_text(to_json({"ideal": truth.ideal(limit), "noise": args.noise, "searches": results}, indent=1))
    _print(results, args.trials, limit)


def _search(name: str, tell: str, seed: int, trials: int, noise: float, limit: float) -> dict[str, Any]:
    return search(CONTENDERS[name], seed, trials, noise, limit, tell) | {"sampler": name}


def search(
    contender: Contender, seed: int, trials: int, noise: float, limit: float = math.inf, tell: str = "infeasible"
) -> dict[str, Any]:
    """One search: hypervolume shares at the marks, time per proposal, and trials lost to the limit."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    space, rng = truth.space(), np.random.default_rng(seed)
    study = optuna.create_study(directions=[*OBJECTIVES.values()], sampler=contender.sampler(seed, 0))
    for params in space.anchors() if contender.ours else []:
        study.enqueue_trial(params)
    seen, true, ask_s, lost = [], [], [], 0
    shares: dict[int, float] = {}
    for number in range(1, trials + 1):
        begin = time.perf_counter()
        if is_random_control(number, contender.random_every):
            study.sampler = optuna.samplers.RandomSampler(seed=seed_for(seed, number))
        elif contender.reseeded:
            study.sampler = contender.sampler(seed_for(seed, number), number - 1)
        trial = study.ask()
        values = space.suggest(trial) if contender.ours else plain(trial, space)
        ask_s.append(time.perf_counter() - begin)
        exact, figures = truth.truth(values), truth.measure(values, rng, noise)
        fits = exact["peak_memory_gb"] <= limit
        lost += not fits
        if fits:
            seen.append(truth.losses(figures))
            true.append(truth.losses(exact))
        if tell == "fail" and not fits:
            study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_constraint("infeasible", -1.0 if fits else 1.0)
            study.tell(trial, list(figures.values()) if fits else _worst(seen))
        if number in MARKS or number == trials:
            front = np.array(true).reshape(-1, 3)[nondominated(np.array(seen).reshape(-1, 3))]
            shares[number] = truth.hypervolume(front) / truth.ideal(limit)
    return {"seed": seed, "tell": tell, "share": shares, "ask_ms": 1e3 * statistics.fmean(ask_s),
            "ask_ms_last": 1e3 * statistics.median(ask_s[-10:]), "lost": lost}  # fmt: skip


def plain(trial: Trial, space: Space) -> dict[str, Any]:
    """The encoding of Optuna's tutorial: every list of values is a category."""
    values = {
        e.name: trial.suggest_categorical(e.name, e.values) if e.values else e.suggest(trial) for e in space.entries
    }  # fmt: skip
    return effective(values)


def _worst(seen: list[tuple[float, ...]]) -> list[float]:
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in OBJECTIVES.values()]
    losses = np.max(seen, axis=0) if seen else np.array([-truth.WORST[0], *truth.WORST[1:]])
    return [float(v) for v in losses * signs]


def _print(results: list[dict[str, Any]], trials: int, limit: float) -> None:
    from rich.console import Console
    from rich.table import Table

    marks = sorted({m for m in MARKS if m < trials} | {trials})
    finite = math.isfinite(limit)
    table = Table(title="hypervolume of the reported front, share of the best possible: median (lowest .. highest)")
    for head in ("sampler", *(["lost as", f"lost of {trials}"] if finite else []), *map(str, marks), "ask ms", "last 10"):
        table.add_column(head, justify="right" if head != "sampler" else "left")
    for name, tell in dict.fromkeys((r["sampler"], r["tell"]) for r in results):
        mine = [r for r in results if (r["sampler"], r["tell"]) == (name, tell)]
        cells = [name] + ([tell, _spread([r["lost"] for r in mine], "{:.0f}")] if finite else [])
        cells += [_spread([r["share"][m] for r in mine], "{:.3f}") for m in marks]
        cells += [f"{statistics.median(r[k] for r in mine):.0f}" for k in ("ask_ms", "ask_ms_last")]
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 140).print(table)


def _spread(figures: list[float], form: str) -> str:
    shown = (form.format(f) for f in (statistics.median(figures), min(figures), max(figures)))
    return "{} ({} .. {})".format(*shown) if len(figures) > 1 else form.format(figures[0])
