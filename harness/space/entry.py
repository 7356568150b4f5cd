"""Entry: one knob of the search space, its legal values and its Optuna parameter.

The parameter of an ordinal entry is the index of the value. The sampler then learns the order, and a value appended to the
list stays legal. A float is rounded to four digits: more would only look precise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.knobs import CACHE_DEPENDENT, LOSSY, WORDS
from harness import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Entry:
    """One knob of the space: a range of numbers (with a grid from `low` if it has a step), or a tuple of values.

    It exists where each knob in `when` has one of the values given there.
    """

    name: str
    type: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    values: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether these values of the other entries meet all conditions."""
        return all(parent in values and values[parent] in legal for parent, legal in self.when)

    @property
    def span(self) -> tuple[Any, ...]:
        """The values, or the two ends of the range."""
        return self.values or (self.low, self.high)

    @property
    def single(self) -> bool:
        """Whether the entry has one value only."""
        return len(self.values) == 1 or (not self.values and self.low == self.high)

    def decode(self, raw: Any) -> Any:
        """The knob's value for an Optuna parameter."""
        if self.values:
            return self.values[raw] if self.type == "ordinal" else raw
        if self.step is not None:
            raw = float(f"{self.low + round((raw - self.low) / self.step) * self.step:.10g}")
        elif self.type == "float":
            raw = float(f"{raw:.4g}")
        raw = min(max(raw, self.low), self.high)
        return int(raw) if self.type == "int" else float(raw)

    def encode(self, value: Any) -> Any:
        """The Optuna parameter for a knob's value. Raises `ConfigError` for a value outside the entry."""
        value = worded(self.name, value)
        if self.values and value in self.values:
            return self.values.index(value) if self.type == "ordinal" else value
        number = not self.values and isinstance(value, int | float) and self.low <= value <= self.high
        if number and (self.step is None or math.isclose(self.decode(value), value, rel_tol=1e-9)):
            return value
        legal = ", ".join(map(show, self.values)) or f"{self.low:g} .. {self.high:g}"
        legal += f" in steps of {self.step:g}" if self.step else ""
        raise ConfigError(f"{self.name}={show(value)} is outside its search space ({legal}); move it or widen the space")

    def suggest(self, trial: BaseTrial) -> Any:
        """Suggest the parameter in an Optuna trial, with the range of `distribution`."""
        if self.type == "ordinal":
            return trial.suggest_int(self.name, 0, len(self.values) - 1)
        if self.type == "choice":
            return trial.suggest_categorical(self.name, self.values)
        if self.type == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> BaseDistribution:
        """The Optuna distribution of the parameter."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.type == "ordinal":
            return IntDistribution(0, len(self.values) - 1)
        if self.type == "choice":
            return CategoricalDistribution(self.values)
        if self.type == "int":
            return IntDistribution(int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return FloatDistribution(self.low, self.high, step=self.step, log=self.log)

    def as_config(self) -> dict[str, Any]:
        """The entry as in YAML, in full."""
        raw: dict[str, Any] = {"type": self.type}
        raw |= {"values": list(self.values)} if self.values else {"low": self.low, "high": self.high, "log": self.log}
        raw |= {} if self.step is None else {"step": self.step}
        return raw | ({"when": {parent: list(legal) for parent, legal in self.when}} if self.when else {})

    def ends(self) -> tuple[Any, Any]:
        """The first and the last value; of a lossy knob, the one with the largest loss first and the checkpoint's last.

        The largest loss is the lowest precision, or the highest value of a knob that depends on the cache's content.
        """
        ends = self.values or (self.decode(self.low), self.decode(self.high))
        if self.name in LOSSY:
            ends = tuple(sorted(ends, key=lambda v: (v is None, v or 0), reverse=self.name in CACHE_DEPENDENT))
        return ends[0], ends[-1]

    def at_least(self, wanted: float) -> Any:
        """The smallest value of numbers that is not below `wanted`, which must not be above the largest."""
        if self.values:
            return min(v for v in self.values if isinstance(v, int | float) and v >= wanted)
        if self.step is not None or self.type == "int":
            step = self.step or 1
            return self.decode(self.low + math.ceil((wanted - self.low) / step - 1e-9) * step)
        return self.decode(max(self.low, min(self.high, wanted * 1.0005)))  # above, after rounding to four digits

    def nearest(self, wanted: Any) -> Any:
        """`wanted` if the entry has it, else the nearest value. A choice has no nearest value: its first is taken."""
        if wanted in self.values:
            return wanted
        if self.values:
            numbers = [v for v in self.values if isinstance(v, int | float)]
            if not numbers or not isinstance(wanted, int | float):
                return self.values[-1] if self.name in LOSSY else self.values[0]
            return min(numbers, key=lambda v: abs(v - wanted))
        if wanted is None:
            middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
            return self.decode(middle)
        return self.decode(min(max(wanted, self.low), self.high))


def worded(name: str, value: Any) -> Any:
    """The knob's number for a value given as a word, e.g. sync_window=all; any other value as it is."""
    return WORDS.get(name, {}).get(value, value) if isinstance(value, str) else value


def show(value: Any) -> str:
    """A value as in YAML."""
    return "null" if value is None else str(value)


def shown(value: Any) -> str:
    """A value or a list of values for a reader, floats with four digits."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return "unset" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
