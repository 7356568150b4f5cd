"""Throughput of several workers in a shared study, against one worker.

    python -m harness.bench shared [--url postgresql://USER@HOST:PORT/DATABASE]

It runs the demo study with an engine that only waits, once with one worker and once with several. All workers run on this
machine, each with its own results folder. Without --url, it starts a PostgreSQL of the system's packages. All workers share
this machine's cores for the rest of a trial, so several machines scale better than this figure.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from typing import Any

from engine import Knobs, Measurement
from engine.cli.program import add_command
from engine.system.user_cache import child_environment

BAR = 3.6  # target for four workers, as a multiple of one worker's throughput
WAIT = "HEADRACE_BENCH_WAIT_S"


class Waiting:
    """An engine that waits for a fixed time; its figures have no meaning."""

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs

    @classmethod
    def load(cls, checkpoint: Any, knobs: Knobs) -> Waiting:
        return cls(knobs)

    def measure(self, judge: Any) -> Measurement:
        time.sleep(float(os.environ[WAIT]))
        gb = self.knobs.cache_gb or 1.0
        bits = self.knobs.expert_bits or 8
        return Measurement(decode_tok_s=10 + gb, peak_memory_gb=0.1 + gb, perplexity=4 + 12 * 2.0**-bits)


def add(sub: Any) -> None:
    parser = add_command(sub, "shared", run, __doc__)
    parser.add_argument("--url", help="a database, which keeps two studies (default: a temporary one)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=20, help="trials of each worker (default: 20)")
    parser.add_argument("--seconds", type=float, default=2.0, help="wait of each trial (default: 2)")


def run(args: argparse.Namespace) -> None:
    from harness import ConfigError

    from .postgres import binaries, postgres

    if min(args.workers, args.trials) < 2:
        raise ConfigError("--workers and --trials must be at least 2; raise them")
    if args.url:
        compare(args, args.url)
    elif binaries() is None:
        raise ConfigError("no PostgreSQL is installed (initdb and postgres are not found); install it, or give --url")
    else:
        with postgres() as url:
            compare(args, url)


def compare(args: argparse.Namespace, url: str) -> None:
    """Print the throughput of one worker and of several, and their ratio."""
    print(f"trials that wait {args.seconds:g} s, on {os.cpu_count()} cores with a load of {os.getloadavg()[0]:.1f} before")
    one = throughput(1, args.trials, args.seconds, url)
    print(f"1 worker    {one:6.1f} trials/min", flush=True)
    several = throughput(args.workers, args.trials * args.workers, args.seconds, url)
    print(f"{args.workers} workers   {several:6.1f} trials/min, {several / one:.2f} times one worker (target: {BAR} with 4)")


def throughput(workers: int, trials: int, wait_s: float, url: str) -> float:
    """Trials per minute, from the start of the first to the end of the last."""
    import pandas as pd

    from harness import StudyStopped
    from harness.results.rows import read_trials

    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/checkpoint")
        name = f"bench_{uuid.uuid4().hex[:8]}"
        command = [
            sys.executable, "-m", "harness.search", "study=demo", f"study.name={name}", f"storage.url={url}",
            "engine.module=harness.bench.shared:Waiting", f"model.path={folder}/checkpoint", f"budget.trials={trials}",
            "sampler.name=tpe", "protocol.stop_error=0", "sentinel.every=0", "confirm.share=0",
            "guards.alone=false", "guards.wait_s=0", "guards.max_load=1000", "guards.keep_awake=false",
        ]  # fmt: skip
        env = child_environment(**{WAIT: str(wait_s)})
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        started = [
            subprocess.Popen([*command, f"results_dir={folder}/{i}"], env=env, text=True, **quiet) for i in range(workers)
        ]
        for worker in started:
            errors = worker.communicate()[1]
            if worker.returncode:
                raise StudyStopped(f"a worker ended with {worker.returncode}: {errors.strip().splitlines()[-1]}")
        df = pd.concat([read_trials(f"{folder}/{i}/{name}") for i in range(workers)])
        end = (df["started_at"] + pd.to_timedelta(df["wall_s"], unit="s")).max()
        return float(df["trial"].nunique() / (end - df["started_at"].min()).total_seconds() * 60)
