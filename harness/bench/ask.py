"""Cost of a proposal and of its result in the storage of a long study, as a share of a trial of 60 s.

    python -m harness.bench ask --at 100 1000 3000

It uses the search's own `Proposals` on a SQLite file, with the rows of all trials. Earlier trials are inserted in bulk.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import create_trial

from engine import Knobs
from engine.cli.program import add_command
from engine.system.strict_json import to_json
from harness import ConfigError
from harness.propose.ask_tell import Proposals, Search
from harness.propose.bulk import replace_trials
from harness.propose.samplers import has_torch
from harness.propose.storage import open_storage
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES

from . import truth

TRIAL_S, BAR = 60.0, 0.02
TURNS = 5
GP_UP_TO = 100  # trials; beyond, the proposals of gp take minutes
NAME = "bench"


def add(sub: Any) -> None:
    parser = add_command(sub, "ask", run, __doc__)
    parser.add_argument("--at", type=int, nargs="+", default=[100, 1000, 3000], metavar="N", help="trials in the study")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    if min(args.at) < 1:
        raise ConfigError(f"--at {min(args.at)} is below 1; raise it")
    table = Table(title=f"proposals and results, SQLite (WAL), median of {TURNS}; the limit is {BAR:.0%} of {TRIAL_S:g} s")
    for head in ("trials", "sampler", "ask ms", "tell ms", f"share of {TRIAL_S:g} s", "open s"):
        table.add_column(head, justify="right")
    results = []
    for count in sorted(args.at):
        with tempfile.TemporaryDirectory() as folder:
            rows = fill(Path(folder), count)
            for name in ("tpe", *(["gp"] if has_torch() and count <= GP_UP_TO else [])):
                figures = cost(Path(folder), rows, name)
                results.append({"sampler": name, "trials": count, **figures})
                share = (figures["ask_ms"] + figures["tell_ms"]) / 1e3 / TRIAL_S
                cells = (f"{figures[k]:.0f}" for k in ("ask_ms", "tell_ms"))
                table.add_row(str(count), name, *cells, f"{share:.2%}", f"{figures['open_s']:.1f}")
    Console().print(table)
    if args.json:
        args.json.write_text(to_json(results, indent=1))


def fill(folder: Path, count: int) -> list[dict[str, Any]]:
    """Write a study of `count` random, measured trials into `folder`; returns their rows."""
    space, rng, storage = truth.space(), np.random.default_rng(0), open_storage(folder)
    distributions = space.distributions()
    study = optuna.create_study(study_name=NAME, storage=storage, directions=[*OBJECTIVES.values()])
    study.set_user_attr("first", 1)
    draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rows, trials = [], []
    for number in range(count):
        params = draws.ask(distributions).params
        rows.append(row_of(number + 1, space.values(params), "sampler", rng))
        trials.append(
            create_trial(
                params=params,
                distributions=distributions,
                values=[rows[-1][n] for n in OBJECTIVES],
                user_attrs={"trial": number + 1, "origin": "sampler", "proposer": "tpe", "owner": ""},
                constraints={"possible": -1.0},
            )
        )
    replace_trials(storage, study._study_id, trials)
    return rows


def row_of(trial: int, values: dict[str, Any], origin: str, rng: np.random.Generator) -> dict[str, Any]:
    """A row as the search writes it, with figures of the known truth."""
    figures = truth.measure(values, rng)
    facts = {"trial": trial, "run": 0, "origin": origin, "status": "ok", "seen_peak_gb": figures["peak_memory_gb"]}
    return {**dict.fromkeys(NAMES), **Knobs.from_mapping(values).as_dict(), **figures, **facts}


def cost(folder: Path, rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Median times of `ask` and `tell`, ms, and the time to open the study, s. Adds a few trials to it."""
    rng, begin = np.random.default_rng(0), time.perf_counter()
    proposals = Proposals(open_storage(folder), NAME, Search(OBJECTIVES, sampler=name), truth.space(), rows=rows)
    open_s = time.perf_counter() - begin
    ask_s, tell_s = [], []
    for _ in range(TURNS + 1):
        begin = time.perf_counter()
        proposal = proposals.ask(TRIAL_S)
        ask_s.append(time.perf_counter() - begin)
        rows.append(row_of(proposal.trial, proposal.values, proposal.origin, rng))
        begin = time.perf_counter()
        proposals.tell(rows[-1], rows)
        tell_s.append(time.perf_counter() - begin)
    ask_ms, tell_ms = (1e3 * statistics.median(s[1:]) for s in (ask_s, tell_s))  # the first one is a warm-up
    return {"ask_ms": ask_ms, "tell_ms": tell_ms, "open_s": open_s}
