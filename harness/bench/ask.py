"""What asking and telling costs in the storage of a long study, as a share of a trial of 60 s.

python -m harness.bench ask --at 100 1000 3000
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import create_trial

from .. import ConfigError
from ..columns import OBJECTIVES
from ..samplers import GP_BELOW, has_torch, sampler_for, seed_for
from . import truth

TRIAL_S, BAR = 60.0, 0.02
TURNS = 5


def add(sub: Any) -> None:
    parser = sub.add_parser("ask", help="cost of asking and telling", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--at", type=int, nargs="+", default=[100, 1000, 3000], metavar="N", help="trials in the study")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if min(args.at) < 1:
        raise ConfigError(f"--at {min(args.at)} is below 1; raise it")
    table = Table(title=f"asking and telling, SQLite (WAL), median of {TURNS}; the bar is {BAR:.0%} of {TRIAL_S:g} s")
    for head in ("trials", "sampler", "ask ms", "tell ms", f"share of {TRIAL_S:g} s", "open s"):
        table.add_column(head, justify="right")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.db"
        for count in sorted(args.at):
            fill(path, count)
            for name in ("tpe", *(["gp"] if has_torch() and count < GP_BELOW else [])):
                figures = cost(path, name)
                results.append({"sampler": name, "trials": count, **figures})
                share = (figures["ask_ms"] + figures["tell_ms"]) / 1e3 / TRIAL_S
                cells = (f"{figures[k]:.0f}" for k in ("ask_ms", "tell_ms"))
                table.add_row(str(count), name, *cells, f"{share:.2%}", f"{figures['open_s']:.1f}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def fill(path: Path, count: int) -> None:
    """Have the study at `path` hold at least `count` trials: the missing ones are drawn at random and measured."""
    _quiet()
    space, rng, study = truth.space(), np.random.default_rng(0), _open(path)
    distributions = space.distributions()
    held = len(study.get_trials(deepcopy=False))
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=held), directions=[*OBJECTIVES.values()])
    for number in range(held, count):
        params = draws.ask(distributions).params
        figures = truth.measure(space.values(params), rng)
        study.add_trial(create_trial(values=list(figures.values()), params=params, distributions=distributions,
                                     constraints={"infeasible": -1.0}, user_attrs={"trial": number}))  # fmt: skip


def cost(path: Path, name: str) -> dict[str, float]:
    """Medians of asking and telling in the study at `path`, ms, and what opening it took, s. Adds a few trials."""
    _quiet()
    space, rng = truth.space(), np.random.default_rng(0)
    begin = time.perf_counter()
    study = _open(path)
    count = len(study.get_trials(deepcopy=False))
    open_s = time.perf_counter() - begin
    ask_s, tell_s = [], []
    for turn in range(TURNS + 1):
        begin = time.perf_counter()
        study.sampler, _ = sampler_for(name, {}, seed=seed_for(0, count + turn), space_flat=space.flat,
                                       trials_so_far=count + turn, objectives=3, torch=has_torch())  # fmt: skip
        trial = study.ask()
        values = space.suggest(trial)
        trial.set_user_attr("trial", count + turn)
        asked = time.perf_counter()
        trial.set_constraint("infeasible", -1.0)
        study.tell(trial, list(truth.measure(values, rng).values()))
        ask_s.append(asked - begin)
        tell_s.append(time.perf_counter() - asked)
    ask_ms, tell_ms = (1e3 * statistics.median(s[1:]) for s in (ask_s, tell_s))  # the first one warms up
    return {"ask_ms": ask_ms, "tell_ms": tell_ms, "open_s": open_s}


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _open(path: Path) -> optuna.Study:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    return optuna.create_study(study_name="bench", storage=storage, directions=[*OBJECTIVES.values()], load_if_exists=True)
