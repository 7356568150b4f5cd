"""Tests of `bench products`: both sides compute the same bits, and a machine without either is told so."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.__main__ import main
from engine.bench.machine import products as module
from engine.bench.machine.products import libraries, sgemm_of
from engine.errors import HeadraceError

here = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the function is for Linux on x86-64"
)


@here
def test_the_table_and_the_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "SHAPES", ((5, 7, 7), (3, 4, 9)))
    monkeypatch.setattr(module, "LEAST_S", 1e-4)
    assert main(["bench", "products", "--rounds", "2"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["bench"] == "products" and len(found["rows"]) == 4 == sum(line.endswith(" equal") for line in lines)
    for row in found["rows"]:
        assert row["equal"] and all(
            low > 0 for low in (row["gmac_s"][0], row["reference_gmac_s"][0], row["numpy_gmac_s"][0])
        )
    assert [row["transposed"] for row in found["rows"]] == [False, True] * 2


@here
@pytest.mark.parametrize("transposed", [False, True])
def test_each_library_multiplies(transposed: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((4, 6), np.float32), rng.standard_normal((6, 6), np.float32)
    for library in libraries():
        out = np.empty((4, 6), np.float32)
        sgemm_of(library, transposed)(a, b, out)
        assert np.allclose(out, a @ (b.T if transposed else b), atol=1e-5)


def test_a_machine_without_either_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import mlx

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mlx, "__path__", [str(tmp_path / "mlx")])
    with pytest.raises(HeadraceError, match=r"pip install 'mlx\[cpu\]'"):
        libraries()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(HeadraceError, match="Linux on x86-64; this is darwin on x86_64"):
        libraries()
