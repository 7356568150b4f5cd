"""Strict JSON: the only way in which this project writes and reads its documents.

Python's own module writes NaN and Infinity, which are no JSON, and reads them, and numbers like 1e999, without an error. A
figure that is not finite is a defect of what was measured, so a document with one is refused, and the error names its place.

The exceptions are files of others, whose readers are those of mlx-lm: a checkpoint's config.json may have Infinity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from engine.errors import FigureError

MOST_SHOWN = 60  # characters of a number in a message


class NumberError(ValueError):
    """NaN, Infinity or a number beyond the range of a float in a JSON text."""


def to_json(value: Any, what: str = "the document", **style: Any) -> str:
    """A value as JSON; `style` are keyword arguments of `json.dumps`. Raises `FigureError` for a number that is not finite,
    with its place in `what`."""
    try:
        return json.dumps(value, allow_nan=False, **style)
    except ValueError:
        refuse_not_finite(value, what)
        raise


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises `ValueError` for a text that is not JSON, and `NumberError` for one with NaN,
    Infinity or a number beyond the range of a float."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except NumberError as e:
        found = not_finite(json.loads(text))
        raise NumberError(f"{found[0]}: {e}" if found and found[0] else str(e)) from None


def refuse_not_finite(value: Any, what: str, remedy: str = "") -> None:
    """Raise `FigureError` if a number in `value`, nested at any depth, is not finite. `what` is what it is a figure of."""
    found = not_finite(value)
    if found is not None:
        place, number = found
        of = f"{place} of {what}" if place else what
        raise FigureError(f"{of} is {number}, which is no figure; {remedy or 'nothing was written'}")


def not_finite(value: Any, place: str = "") -> tuple[str, str] | None:
    """The place (`measured.nll`, `rows[3]`) and the name of the first number that is not finite; None without one."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            if found := not_finite(name, f"a key of {place or 'it'}") or not_finite(one, f"{place}.{name}".lstrip(".")):
                return found
    elif isinstance(value, list | tuple | set | frozenset):
        for i, one in enumerate(value):
            if found := not_finite(one, f"{place}[{i}]"):
                return found
    elif hasattr(value, "tolist") and not isinstance(value, type):  # of numpy: a number or an array
        return not_finite(value.tolist(), place)
    elif isinstance(value, float) and not math.isfinite(value):
        return place, "nan" if math.isnan(value) else "infinite" if value > 0 else "minus infinite"
    return None


def _refuse_constant(name: str) -> NoReturn:
    raise NumberError(f"{name} is not a number in JSON")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NumberError(f"{text[:MOST_SHOWN]} is beyond the range of a number")
    return value
