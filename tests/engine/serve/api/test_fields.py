"""Fields: types, ranges and values that are not supported."""

from __future__ import annotations

from typing import Any

import pytest

from engine.serve.api.fields import Fields, checked
from engine.serve.errors import RequestError


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, int),
        (True, float),
        ("1", int),
        (1.5, int),
        (None, str),
        (10**400, float),
        ("\ud800", str),
        ({}, list),
        (1, bool),
    ],
)
def test_a_wrong_type_names_the_field(value: Any, kind: type) -> None:
    with pytest.raises(RequestError, match=r"^field ") as e:
        checked("field", value, kind)
    assert e.value.param == "field" and e.value.status == 400


def test_values_and_defaults() -> None:
    fields = Fields({"a": 1, "b": None, "big": 1 << 70})
    assert checked("x", 1, float) == 1.0 and fields.get("b", int, 7) == 7 and fields.number("a", 0, 0, 2) == 1
    assert fields.whole("c", None, 0) is None
    with pytest.raises(RequestError, match="a is 1; it must be at least 2"):
        fields.whole("a", None, 2, 3)
    with pytest.raises(RequestError, match="big is too large"):
        fields.whole("big", None, 0)


def test_only_some_values() -> None:
    fields = Fields({"n": 1, "echo": True, "m": True})
    fields.only("n", 1)
    fields.only("missing")
    for name, allowed in (("echo", (False,)), ("m", (1,)), ("n", ())):
        with pytest.raises(RequestError, match="not supported"):
            fields.only(name, *allowed)
