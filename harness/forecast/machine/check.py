"""Check: forecasts of kimi_mini on this machine beside measurements, with the disk held at several bandwidths.

    python -m harness.forecast.machine.check

The layers are probed once, before everything. Then each combination of bandwidth and cache size is measured, in random
order, with `ssd_gbps` holding the reads. The routing is that of a trace, recorded first over the tokens that are timed, or
with `--shipped-trace` that of other texts, which the checkpoint ships.

A machine that others use has another speed some minutes after the probe. So a control run, with everything in memory, is
repeated before and after the probe and between all settings, as the sentinel of a study is. Its speed over that at the probe
is the machine's state. Each setting has two forecasts: that of the probe alone, and that for the state of its moment. The
interval of the second has the noise of the control runs in place of the spread of states. It prints a table, the median
errors and the shares inside the intervals; some minutes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cli.program import guarded, make_parser
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.measure.protocol import Protocol
from engine.system.shipped import EXPERIMENTS
from harness.forecast.forecast import TEXTS, Row, forecast
from harness.forecast.interval import Interval
from harness.forecast.locality import OTHER_TEXT_SD, own_world
from harness.forecast.target import Target, target

from .figures import HERE_SD, MODEL_SD, Machine, device_from, machine

CHECKPOINT = EXPERIMENTS / "kimi_mini" / "checkpoint"
DISK_GBPS, CACHED = (0.05, 0.1, 0.2, 0.5, 1.0), (0.1, 0.125, 0.2, 0.25, 0.375, 0.5, 0.625, 0.75)
HELD_SD = 0.0  # of a held disk


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two forecasts of a setting and what was measured. `row` follows from the probe alone. `then` is the speed for the
    machine's `state` at the measurement, as a share of its speed at the probe."""

    disk_gbps: float
    row: Row
    state: float
    then: Interval
    tok_s: float
    read_gb: float

    def error(self, forecast: Interval) -> float:
        return abs(forecast.middle / self.tok_s - 1)

    def line(self) -> str:
        def text(t: Interval) -> str:
            return f"{t.middle:.3g} | {t.low:.3g} to {t.high:.3g} | {'yes' if self.tok_s in t else 'no'}"

        return (
            f"| {self.disk_gbps:g} | {self.row.cached_share:.3g} | {self.tok_s:.3g} | {text(self.row.tok_s)} | "
            f"{self.state:.2f} | {text(self.then)} | {self.row.read_gb * 1e3:.3g} | {self.read_gb * 1e3:.3g} |"
        )


HEAD = (
    "| disk, GB/s | cached | measured, tok/s | forecast | 80 % | inside | state | forecast then | 80 % | inside | "
    "MB a token, forecast | measured |\n|" + "---|" * 12
)


def with_disk(found: Machine, gbps: float, inadequacy_sd: float = HERE_SD) -> Machine:
    """The same probes with a held disk."""

    def rates(work: Any) -> Any:
        some = found.rates(work)
        some = dataclasses.replace(some, disk_gbps=gbps, disk_sd=HELD_SD, inadequacy_sd=inadequacy_sd)
        parts = some.middle(work)
        assert found.probed is not None
        return dataclasses.replace(some, compute_sd=found.probed.sd * parts["compute"] / sum(parts.values()))

    return dataclasses.replace(found, rates=rates, disk_gbps=gbps)


def measured(cache_gb: float, disk_gbps: float, tokens: int) -> tuple[float, float]:
    """Tokens a second and GB a token of one run."""
    from engine import load

    with load(CHECKPOINT, Knobs(cache_gb=cache_gb, ssd_gbps=disk_gbps)) as engine:
        found = engine.measure(Judge.load(TEXTS), Protocol(timed_tokens=tokens, score=False))
    return found.decode_tok_s, (found.bytes_per_token or 0.0) / 1e9


def control(tokens: int) -> float:
    """Tokens a second with everything in memory."""
    from engine import load

    with load(CHECKPOINT, Knobs()) as engine:
        return engine.measure(Judge.load(TEXTS), Protocol(timed_tokens=tokens, score=False)).decode_tok_s


def recorded(folder: Path, tokens: int) -> Path:
    """A trace of the timed tokens, and of what precedes them."""
    from engine import load

    file = folder / "trace.parquet"
    with load(CHECKPOINT, Knobs()) as engine, engine.trace(file):
        engine.measure(Judge.load(TEXTS), Protocol(timed_tokens=tokens, score=False))
    return file


def pairs(model: Target, disks: Sequence[float], shares: Sequence[float], tokens: int, missed_sd: float) -> list[Pair]:
    """Forecast and measure every combination, in random order. `missed_sd`: 0 if the trace is of the timed texts."""
    assert model.trace is not None
    worlds = own_world(model.trace, model.layers, model.experts, model.top_k, missed_sd)
    controls = [control(tokens)]
    found = machine(device_from({"device.disk_gbps": "1"}), model, Path())
    controls.append(control(tokens))
    every_gb = model.layers * model.experts * model.slot_gb(model.widths[0], widened=found.widened)
    settings = [(disk, share) for disk in disks for share in shares]
    random.Random(0).shuffle(settings)
    runs = []
    for disk, share in settings:
        runs.append(measured(share * every_gb, disk, tokens))
        controls.append(control(tokens))
    noise = statistics.pstdev(math.log(b / a) for a, b in itertools.pairwise(controls)) / math.sqrt(2)
    known_sd = math.hypot(MODEL_SD, noise * math.sqrt(1.5))  # of a run beside the mean of two control runs
    states = [(a + b) / (controls[0] + controls[1]) for a, b in itertools.pairwise(controls[1:])]
    made = []
    for (disk, share), run, state in zip(settings, runs, states, strict=True):
        row, then = (
            forecast(model, with_disk(found, disk, sd), worlds, [share * every_gb]).best for sd in (HERE_SD, known_sd)
        )
        made.append(Pair(disk, row, state, then.tok_s.scaled(state), *run))
    return sorted(made, key=lambda pair: (pair.disk_gbps, pair.row.cached_share))


def main(arguments: Sequence[str], program: str = "python -m harness.forecast.machine.check") -> int:
    """Print the table; returns the exit status."""
    return guarded(lambda: _main(arguments, program))


def _main(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="timed tokens of a setting (default: 64)")
    text = "bandwidths that reads are held to (default: %(default)s)"
    parser.add_argument("--disk-gbps", type=float, nargs="+", default=DISK_GBPS, metavar="GBPS", help=text)
    text = "shares of the experts that are cached (default: %(default)s)"
    parser.add_argument("--cached", type=float, nargs="+", default=CACHED, metavar="SHARE", help=text)
    text = "forecast with the routing of other texts, which the checkpoint ships"
    parser.add_argument("--shipped-trace", action="store_true", help=text)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        trace, missed_sd = (None, OTHER_TEXT_SD) if args.shipped_trace else (recorded(Path(folder), args.tokens), 0.0)
        made = pairs(target(str(CHECKPOINT), trace), args.disk_gbps, args.cached, args.tokens, missed_sd)
    print("\n".join([HEAD, *(pair.line() for pair in made)]) + "\n")
    states = sorted(pair.state for pair in made)
    print(f"state of the machine, as a share of its speed at the probe: {states[0]:.2f} to {states[-1]:.2f}")
    for name, of in (("by the probe alone", lambda pair: pair.row.tok_s), ("for the state", lambda pair: pair.then)):
        inside = sum(pair.tok_s in of(pair) for pair in made)
        error = statistics.median(pair.error(of(pair)) for pair in made)
        print(f"forecast {name}: median error {error:.0%}, {inside} of {len(made)} inside ({inside / len(made):.0%})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
