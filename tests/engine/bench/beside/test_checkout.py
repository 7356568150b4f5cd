"""Tests of the process of a checkout: its errors are one line with the checkout's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import HeadraceError
from engine.bench.beside.checkout import Checkout
from engine.system.shipped import PACKAGES


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=r"has no engine/__init__.py; give the folder of a checkout of Headrace"):
        Checkout(tmp_path, {})


def test_a_process_that_ends(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("raise SystemExit('no such luck')")
    with Checkout(tmp_path, {}) as checkout, pytest.raises(HeadraceError, match=r"ended with status 1: .*no such luck"):
        checkout.ask("close")


def test_an_error_of_a_request_leaves_the_process_in_use() -> None:
    with Checkout(PACKAGES, {}) as checkout:
        with pytest.raises(HeadraceError, match=rf"{PACKAGES}: KeyError: 'dance' \(.*driver.py:\d+\)"):
            checkout.ask("dance")
        assert checkout.ask("close") == {}
