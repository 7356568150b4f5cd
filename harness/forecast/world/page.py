"""Page: docs/evidence/forecast.md, with each published measurement beside its forecast.

    python -m harness.forecast.world.page
    python -m harness.forecast.world.page --fit

The first command prints the page, the second the figures that profiles use (fitted.json beside this file).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.cli.program import guarded, make_parser
from engine.system.strict_json import to_json
from harness.forecast.interval import COVERAGE, SOURCES, Interval

from .calibration import Calibration, forecast_of, usable, without
from .measurements import world
from .setting import Published, lacks

EXPLAINED = {  # by what the publication says; others outside are not explained
    "TurboFieldfare": "the page cache holds the whole model, so that a missing expert is not read from the SSD",
    "a patch of mlx-lm": "reads pass through the page cache, of which the publication says that it starves",
}
DIGITS = 4  # significant, of the stored fit


def rows() -> list[tuple[Published, Interval]]:
    """Each usable measurement with its forecast."""
    return [(one, forecast_of(one)) for one in usable()]


def page() -> str:
    """The page as Markdown."""
    found = rows()
    inside = sum(one.measured.tokens_per_s in forecast for one, forecast in found)
    outside = [(one, forecast) for one, forecast in found if one.measured.tokens_per_s not in forecast]
    errors = [abs(np.log(f.middle / one.measured.tokens_per_s)) for one, f in found]
    rates = [(one, r) for one, _ in found if (r := one.measured.hit_rate) is not None]
    misses = [abs(float(np.mean(one.hit_rates)) - r) for one, r in rates]
    lost = [(one, missing) for one in world() if (missing := lacks(one))]
    parts = [
        "# Forecasts beside published measurements",
        "Every published measurement of an engine that streams experts, as far as enough of it is published, beside the "
        "forecast of `forecast` for that machine. The command prints this page, and a test compares it:",
        "```sh\npython -m harness.forecast.world.page\n```",
        f"**{inside} of {len(found)} measurements are inside their {_percent(COVERAGE)} interval "
        f"({_percent(inside / len(found))}).** The median error of the middle is a factor of "
        f"{np.exp(np.median(errors)):.2f}. The intervals are wide: engines differ by more than settings do. Each forecast "
        "knows the model's shape, the bits, the size of the cache and the bandwidths of memory and disk. It does not know "
        "the engine: the three fitted figures and the spread between engines come from the other engines alone. The fit "
        "uses published hit rates where there are some; the forecast uses its own.",
        _table(found),
        f"hit: expert hits forecast for the localities of {', '.join(_names())}, and as published. Where both are known "
        f"({len(rates)} measurements), the mean of the forecast hit rates is off by "
        f"{_percent(float(np.median(misses)))} of the requests "
        "in the median. share: how much of the squared width comes from what.",
        "## Outside",
        "\n".join(_outside(one, forecast) for one, forecast in outside),
        "## What profiles use",
        _fit(without()),
        "## Not compared",
        "\n".join(f"- {one.name}: {missing} is not published" for one, missing in lost),
        "Bandwidths are those published with the measurement, otherwise those of the machine's profile "
        "(`experiments/devices.yaml`). Where only the memory of the process is published, 0.5 GB and the resident weights "
        "are taken off. Sources: `harness/forecast/world/world.yaml`. All of this was chosen before the share inside was "
        "computed, and not changed after; 80 % would be right, so that these intervals are rather too wide than too narrow.",
    ]
    return "\n\n".join(_wrapped(part) for part in parts) + "\n"


def _names() -> tuple[str, ...]:
    from engine.routing.fitted import FITTED

    return tuple(FITTED)


def _table(found: Sequence[tuple[Published, Interval]]) -> str:
    head = (
        "| measurement | tok/s | forecast | 80 % | inside | hit, forecast | published | share: " + ", ".join(SOURCES) + " |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for one, f in found:
        m = one.measured
        hits = sorted({f"{hit:.2f}" for hit in one.hit_rates})
        shares = ", ".join(_percent(f.shares[name]) for name in SOURCES)
        lines.append(
            f"| [{m.name}]({m.source}) | {m.tokens_per_s:.3g} | {f.middle:.3g} | {f.low:.3g} to {f.high:.3g} | "
            f"{'yes' if m.tokens_per_s in f else '**no**'} | {hits[0]}{f' to {hits[-1]}' if len(hits) > 1 else ''} | "
            f"{'' if m.hit_rate is None else f'{m.hit_rate:.2f}'} | {shares} |"
        )
    return "\n".join(lines)


def _outside(one: Published, forecast: Interval) -> str:
    why = EXPLAINED.get(one.measured.engine, "not explained")
    side = "faster" if one.measured.tokens_per_s > forecast.high else "slower"
    return f"- {one.measured.name}, {side} than forecast: {why}"


def _fit(fit: Calibration) -> str:
    return (
        f"Of the published bandwidth of the memory {_percent(fit.memory_efficiency)}, of that of the disk "
        f"{_percent(fit.disk_efficiency)}, and {fit.layer_ms:.2g} ms a layer besides its weights. An engine differs from "
        f"that by a factor of {np.exp(fit.sd):.2f} (one standard deviation, {fit.degrees} degrees of freedom). Fitted to "
        f"{fit.measurements} measurements; each of the {len(fit.engines)} engines counts once: {', '.join(fit.engines)}."
    )


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _wrapped(part: str) -> str:
    import textwrap

    whole = part.startswith(("#", "|", "```", "- "))
    return part if whole else textwrap.fill(part, 125, break_long_words=False, break_on_hyphens=False)


def fit_text() -> str:
    """The content of fitted.json."""
    return to_json(_rounded(dataclasses.asdict(without())), indent=1) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def main(arguments: Sequence[str], program: str = "python -m harness.forecast.world.page") -> int:
    """Print the page, or the fit; returns the exit status."""
    return guarded(lambda: _main(arguments, program))


def _main(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("--fit", action="store_true", help="print the fitted figures as JSON instead")
    print(fit_text() if parser.parse_args(arguments).fit else page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
