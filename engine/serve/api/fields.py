"""Fields of a request: typed access to a JSON object, with an error that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.serve.errors import RequestError

NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def wrong(name: str, what: str) -> RequestError:
    """A 400 about one field: `name` and what is wrong with it."""
    return RequestError(400, f"{name} {what}", param=name)


def unsupported(name: str, what: str) -> RequestError:
    """A 400 about a field, or a value of it, that the OpenAI API has and this server does not."""
    return RequestError(400, f"{name} {what}", param=name, code="unsupported_parameter")


def checked(name: str, value: Any, kind: type) -> Any:
    """`value` if it is of `kind`; a whole number is accepted as a number. Raises `RequestError`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise wrong(name, "is not a finite number")
        return value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong(name, f"must be {NAMES[kind]}, not {_kind(value)}")
    if kind is str:
        _refuse_surrogates(name, str(value))
    return value


class Fields:
    """A request's body. `get` returns a field or its default; null counts as not given."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self.body.get(name)
        return default if value is None else checked(name, value, kind)

    def number(self, name: str, default: float, low: float, high: float = math.inf) -> float:
        """A finite number between `low` and `high`."""
        return self._between(name, self.get(name, float, default), low, high)

    def whole(self, name: str, default: int | None, low: int, high: int = 1 << 62) -> Any:
        """A whole number between `low` and `high`."""
        value = self.get(name, int, default)
        return value if value is None else self._between(name, value, low, high)

    def only(self, name: str, *allowed: Any) -> None:
        """Raise `RequestError` unless the field is missing, null, or one of `allowed`."""
        value = self.body.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            rest = f"; leave it out, or set it to {allowed[0]!r}" if allowed else "; leave it out"
            raise unsupported(name, f"is not supported by this server{rest}")

    def _between(self, name: str, value: Any, low: float, high: float) -> Any:
        if not low <= value <= high:
            limit = f"at least {low:g}" if value < low else f"at most {high:g}"
            raise wrong(name, f"is {value if abs(value) < 1 << 64 else 'too large'}; it must be {limit}")
        return value


def _refuse_surrogates(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong(name, "has half of a surrogate pair, which is no text") from None


def _kind(value: Any) -> str:
    return "null" if value is None else next((text for kind, text in NAMES.items() if type(value) is kind), "something else")
