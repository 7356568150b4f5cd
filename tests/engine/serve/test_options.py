"""Options: ranges, addresses and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import HeadraceError
from engine.serve.options import ServeOptions, short_name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70_000}, "--port 70000 is outside 0 .. 65535"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"grace_s": -1}, "--grace -1"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"api_key": ""}, "--api-key is empty"),
        ({"api_key": "schlüssel"}, "printable ASCII"),
    ],
)
def test_impossible_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadraceError, match=message):
        ServeOptions(**values)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "8.8.8.8"])
def test_an_open_address_needs_a_key(host: str) -> None:
    with pytest.raises(HeadraceError, match="open to other machines"):
        ServeOptions(host=host).address()
    assert ServeOptions(host=host, api_key="k").address()


def test_loopback_addresses_need_none() -> None:
    assert ServeOptions().address()[1][:2] == ("127.0.0.1", 8080) and ServeOptions(host="localhost").address()
    with pytest.raises(HeadraceError, match=r"--host no\.such\.host\.invalid is unknown"):
        ServeOptions(host="no.such.host.invalid").address()


def test_short_names(tmp_path: Path) -> None:
    hub = tmp_path / "models--moonshotai--Kimi-K2.5" / "snapshots" / "0123"
    assert short_name(hub) == "Kimi-K2.5"
    assert short_name(tmp_path / "kimi_mini" / "checkpoint") == "kimi_mini"
    assert short_name(tmp_path / "Qwen3") == "Qwen3"
