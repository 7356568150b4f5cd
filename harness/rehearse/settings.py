"""Settings: which cache sizes and windows a rehearsal runs with, and one child process for each."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.effective import effective
from engine.errors import HeadraceError
from engine.knobs import LOSSY, Knobs
from engine.plan.footprint import footprint, weights_of
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import compute_apart
from harness.forecast.study.fit import Speed

from .forecasts import Forecasts

CHILD = "engine.bench.decoding.rehearse"
SIZES = 3  # cache sizes, if none is given
ROOM = 0.85  # share of the memory here that the largest of them may take
FORCED_OUT = ("prefetch", "prefetch_depth", "prefetch_width", "prefetch_cap_mb")  # predict routers, whose choice is not used
NAMES = tuple(name for name in Knobs.names() if name not in (*LOSSY, *FORCED_OUT, "cache_gb", "sync_window"))


def settings(
    source: Checkpoint, given: Mapping[str, Any], cached: Sequence[float] | None, cache_gb: Sequence[float] | None,
    windows: Sequence[int], usable_gb: float,
) -> list[Knobs]:  # fmt: skip
    """The settings to run, the largest cache first. Without sizes, three that fit into ROOM of the memory `usable_gb`. Reads
    are direct unless `given` says otherwise. Raises `HeadraceError` if no size fits."""
    fixed = {"io_mode": "direct", **given}
    whole = weights_of(source, Knobs())
    if cache_gb is not None:
        sizes = list(cache_gb)
    elif cached is not None:
        sizes = [max(whole.one_token_gb, share * whole.all_experts_gb) for share in cached]
    else:
        sizes = _fitting(source, fixed, whole.one_token_gb, whole.all_experts_gb, usable_gb)
    made = [
        Knobs.from_mapping(effective({**Knobs().as_dict(), **fixed, "cache_gb": gb, "sync_window": window}))
        for gb in sorted(dict.fromkeys(sizes), reverse=True)
        for window in windows
    ]
    for knobs in made:
        assert knobs.cache_gb is not None
        if knobs.cache_gb < whole.one_token_gb * (1 - 1e-9):
            raise HeadraceError(
                f"--cache-gb {knobs.cache_gb:g} is below one token's experts ({whole.one_token_gb:.4g} GB for "
                f"{source.name}); give more"
            )
    return made


def _fitting(source: Checkpoint, fixed: Mapping[str, Any], least: float, most: float, usable_gb: float) -> list[float]:
    """Cache sizes from one token's experts to the largest that fits, at equal ratios."""
    need = footprint(source, Knobs.from_mapping({**fixed, "cache_gb": least})).predicted_peak_gb
    room = usable_gb * ROOM - need
    if room < 0:
        raise HeadraceError(
            f"{source.name} needs {need:.4g} GB with one token's experts cached ({least:.4g} GB), above {ROOM:.0%} of the "
            f"{usable_gb:.4g} GB of memory here; give --cache-gb {least:.4g} to try it nevertheless"
        )
    high = min(most, least + room)
    found = [math.floor(least * (high / least) ** (n / (SIZES - 1)) * 1e3) / 1e3 for n in range(SIZES)]
    return [least, *(gb for gb in found[1:] if gb > least)]


def run(
    store: str, made: Sequence[Knobs], options: Mapping[str, Any], forecasts: Forecasts, tell: Callable[[str], None]
) -> Iterator[tuple[dict[str, Any], Speed | None]]:
    """Run each setting in a process of its own; yield its figures and the forecast before it. Raises `HeadraceError` with
    the last line of one that fails."""
    for number, knobs in enumerate(made, start=1):
        expected = forecasts.before(knobs)
        about = "" if expected is None else "; forecast {1:.3g} ({0:.3g}..{2:.3g}) tok/s".format(*expected.interval)
        what = f"{number} of {len(made)}: {knobs.shown('cache_gb')}, {knobs.shown('sync_window')}"
        tell(what + about)
        request = to_json({"store": store, "knobs": dataclasses.asdict(knobs), **options})
        output = compute_apart(f"the rehearsal with cache_gb={knobs.cache_gb:.4g}", CHILD, given=request)
        answer = dict(from_json(output.strip().splitlines()[-1]))
        tok_s = statistics.median(answer["tok_s"])
        tell(f"{what}: {tok_s:.3g} tok/s")
        if expected is not None:
            forecasts.after(knobs, tok_s)
        yield answer, expected
