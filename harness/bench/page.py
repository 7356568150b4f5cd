"""Report of a large study: time of each part, and size of the page.

    python -m harness.bench page
    python -m harness.bench page --trials 5000

The rows come from the fake engine of `truth`: anchors and random settings, of which every 50th is measured three times.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from engine import Knobs
from engine.cli.program import add_command
from engine.system.strict_json import to_json
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.show.page.html import write_page
from harness.show.page.summary import Summary
from harness.show.report import report

from . import truth

START = datetime(2026, 1, 1, tzinfo=UTC)


def add(sub: Any) -> None:
    parser = add_command(sub, "page", run, __doc__)
    parser.add_argument("--trials", type=int, default=5000, metavar="N", help="trials of the study (default: 5000)")


def run(arguments: argparse.Namespace) -> int:
    """Print JSON: seconds of the whole report and of the page alone, and the page's size in MB."""
    rows = rows_of(arguments.trials)
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            report(Path(place), rows)
        whole = time.perf_counter() - begin
        begin = time.perf_counter()
        path = write_page(Summary(Path(place), rows))
        page = time.perf_counter() - begin
        size = path.stat().st_size / 1e6
    seconds = {"report_s": round(whole, 2), "page_s": round(page, 2)}
    print(to_json({"trials": arguments.trials, **seconds, "page_mb": round(size, 2)}))
    return 0


def rows_of(trials: int) -> list[dict[str, Any]]:
    """The rows of a study of so many trials."""
    rng, space = np.random.default_rng(0), truth.space()
    anchors = [space.values(p) for p in space.anchors()]
    rows: list[dict[str, Any]] = []
    for trial in range(1, trials + 1):
        values = anchors[trial - 1] if trial <= len(anchors) else _random(rng)
        origin = "anchor" if trial <= len(anchors) else "random"
        for again in range(3 if trial % 50 == 1 else 1):
            rows.append({
                **dict.fromkeys(NAMES), **Knobs(**values).as_dict(), **truth.measure(values, rng), "trial": trial,
                "run": again, "round": 1, "row_id": f"{trial}-{again}",
                "status": "ok", "origin": "confirm" if again else origin,
                "objectives": ",".join(OBJECTIVES), "eval_fingerprint": "none", "study": "large", "model": "truth",
                "cpu": "none", "cores": 1, "hit_rate": 0.5, "wall_s": 60.0,
                "started_at": START + timedelta(minutes=len(rows)), "predicted_peak_gb": values["cache_gb"],
            })  # fmt: skip
    return rows


def _random(rng: np.random.Generator) -> dict[str, Any]:
    """A random setting of the space of `truth`, without knobs that have no effect."""
    from engine.effective import effective

    drawn = {}
    for name, entry in truth.SPACE.items():
        if "values" in entry:
            drawn[name] = entry["values"][int(rng.integers(len(entry["values"])))]
        elif entry["type"] == "int":
            drawn[name] = int(rng.integers(entry["low"], entry["high"] + 1))
        else:
            drawn[name] = float(rng.uniform(entry["low"], entry["high"]))
    return {name: value for name, value in effective(drawn).items() if value is not None}
