"""Compute: the cost of a sync and of copies, as figures, and a device that computes wrongly."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from harness.doctor import compute
from harness.doctor.check import FAILS, WORKS, Place


def test_figures_on_this_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(compute, "ROUNDS", 4)
    device, kernels, sync, copy = (check.result(Place(tmp_path)).figures for check in compute.checks())
    assert device["backend"] == "cuda" or not kernels
    assert device["backend"] in ("cpu", "metal", "cuda")
    low, high = sync["sync_ms_quartiles"]
    assert low <= sync["sync_ms"] or sync["sync_ms"] == 0
    assert low <= high and sync["router_queued_ms"] > 0
    assert copy["copy_gbps"] > 0 and copy["copy_64kib_us"] > 0


def test_a_device_that_computes_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "ones", mx.zeros)
    result = compute.checks()[0].result(Place(tmp_path))
    assert result.state == FAILS and result.reason.endswith("has the sum 0.0 instead of 262144")


def test_where_kernels_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.model.backend.backend", lambda: "cuda")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "own"))
    check = compute.checks()[1]
    result = check.result(Place(tmp_path))
    assert result.text == f"0 modules, 0 MB, in {tmp_path}/own" and result.figures["kernels_lasting"]
    monkeypatch.delenv("MLX_PTX_CACHE_DIR")
    result = check.result(Place(tmp_path))
    assert result.state == WORKS and "a restart may empty; set MLX_PTX_CACHE_DIR" in result.text
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert check.result(Place(tmp_path)).state == FAILS
