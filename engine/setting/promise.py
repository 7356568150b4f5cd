"""Promise: the figures of a setting's study beside those of one measurement, and whether the two agree.

A speed agrees if the difference of the logarithms is within the 95 % intervals of both: that of the study's estimate, and
that of one run by the run-to-run noise of the study. Memory has such intervals as well. No figure needs to be closer than
`CLOSE`, because a study that never saw a figure vary knows no noise.

Quality does not vary between runs, so perplexity must be equal within `EQUAL`: float32 sums in another order, as another
processor or BLAS makes them, differ by less. On another backend or version of MLX it must be within `OTHER_DTYPE`: bfloat16
rounds by 0.4 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.measure.measurement import Measurement

from .differences import machine_here, versions_here
from .setting_file import Setting

CLOSE = 0.01
EQUAL = 1e-5
OTHER_DTYPE = 0.01
FIGURES = {name: f.metadata for name, f in Measurement.__dataclass_fields__.items() if f.metadata}


@dataclass(frozen=True)
class Compared:
    """A figure as the study promised it and as it was measured, with 95 % intervals. `agrees` is null without a common
    basis: other evaluation texts."""

    value: float
    low: float
    high: float
    measured: float
    measured_low: float
    measured_high: float
    agrees: bool | None

    @property
    def verdict(self) -> str:
        """`agrees`, or by how much the measured figure differs."""
        if self.agrees is None:
            return "other texts"
        if self.agrees:
            return "equal" if self.measured == self.value else "agrees"
        return f"differs: {self.measured / self.value - 1:+.1%}" if self.value else "differs"


def compare(setting: Setting, measurement: Measurement) -> dict[str, Compared]:
    """The figures that both the study and `measurement` have, by name."""
    texts = setting.eval_texts.get("fingerprint")
    comparable = texts is None or texts == measurement.eval_fingerprint
    found = {}
    for name, promised in setting.measured.items():
        measured = getattr(measurement, name)
        if measured is not None:
            found[name] = _compared(name, promised, float(measured), setting, comparable or name == "peak_memory_gb")
    return found


def _compared(name: str, promised: Mapping[str, float], measured: float, setting: Setting, comparable: bool) -> Compared:
    value, noise = promised["value"], promised.get("noise", 0.0)
    low, high = promised.get("low", value), promised.get("high", value)
    run = math.log1p(noise)
    if FIGURES[name]["quality"]:
        tolerance = EQUAL if _same_arithmetic(setting) else OTHER_DTYPE
    else:
        estimate = math.log(high / low) / 2 if 0 < low <= high else 0.0
        tolerance = max(math.hypot(run, estimate), math.log1p(CLOSE))
    positive = value > 0 and measured > 0
    agrees = abs(math.log(measured / value)) <= tolerance if positive else measured == value
    ends = measured * math.exp(-run), measured * math.exp(run)
    return Compared(value, low, high, measured, *ends, agrees if comparable else None)


def _same_arithmetic(setting: Setting) -> bool:
    """Whether backend and version of MLX are those of the study, as far as the setting names them."""
    facts = {"backend": (setting.machine, machine_here()), "mlx": (setting.versions, versions_here())}
    return all(str(then.get(name, here.get(name))) == str(here.get(name)) for name, (then, here) in facts.items())


def as_dict(found: Mapping[str, Compared]) -> dict[str, dict[str, Any]]:
    """The comparison, JSON-ready."""
    return {name: asdict(one) for name, one in found.items()}


def table(found: Mapping[str, Compared]) -> list[Sequence[str]]:
    """The rows of a table: figure, promised value and interval, measured value and interval, verdict."""
    return [
        (
            FIGURES[name]["short"] or name, _number(c.value), _interval(c.low, c.high), _number(c.measured),
            _interval(c.measured_low, c.measured_high), c.verdict,
        )
        for name, c in found.items()
    ]  # fmt: skip


def summary(found: Mapping[str, Compared]) -> str:
    """One line: whether all figures agree, and else which differ."""
    known = {name: c for name, c in found.items() if c.agrees is not None}
    if not known:
        return "no figure can be compared with the study's"
    wrong = [f"{name} {c.verdict.removeprefix('differs: ')}" for name, c in known.items() if not c.agrees]
    if not wrong:
        return f"{len(known)} of {len(known)} figures agree with the study's"
    return f"{len(wrong)} of {len(known)} figures differ from the study's: {', '.join(wrong)}"


def _interval(low: float, high: float) -> str:
    return "-" if low == high else f"{_number(low, 3)} .. {_number(high, 3)}"


def _number(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
