"""Tests of the probe: its child, and the file beside the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.model.environment.kernel_cache import VARIABLE
from harness.forecast.study import probe as module
from harness.forecast.study.fit import Features, Figures
from harness.forecast.study.probe import COMPILING_S, FILE, TIMEOUT_S, Kept, kept, probe


def test_a_child_measures_a_small_model(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    found = probe(checkpoint("qwen3_moe"), tmp_path, 0.1, lambda: False, print)
    assert 0 < found.base_ms < 10_000 and found.sync_ms >= 0 and found.missed_ms >= 0 and found.disk_gbps == 0.1


def test_a_child_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=r"config\.json") as e:
        probe(tmp_path, tmp_path, None, lambda: False, print)
    assert "\n" not in str(e.value)


def test_kernels_that_must_be_compiled_take_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def answered(words: list[str], request: object, *, timeout_s: float, **_: object) -> str:
        limits.append(timeout_s)
        return '{"base_ms": 1, "base_sd": 0.1, "sync_ms": 0, "missed_ms": 0, "missed_sd": 0.1, "disk_gbps": 1}'

    monkeypatch.setattr(module, "run_command", answered)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    told: list[str] = []
    probe(tmp_path, tmp_path, None, lambda: False, told.append)
    assert limits == [TIMEOUT_S] and not told
    monkeypatch.setattr(module, "backend", lambda: "cuda")
    monkeypatch.setattr("engine.model.backend.backend", lambda: "cuda")
    probe(tmp_path, tmp_path, None, lambda: False, told.append)
    assert limits[1] == COMPILING_S and "compiles its kernels" in told[0]
    (tmp_path / "kernel.ptx").touch()
    probe(tmp_path, tmp_path, None, lambda: False, told.append)
    assert limits[2] == COMPILING_S and len(told) == 1


def test_the_file_is_read_again(tmp_path: Path) -> None:
    written = Kept(Figures(20.0, 0.1, 0.1, 0.2, 0.1, 5.0), {"ab": Features(1.0, 1.0, 0.0, 2.0, 0.0, 0.3)})
    written.write(tmp_path)
    assert kept(tmp_path) == written
    written.write(tmp_path / "none")  # no folder: nothing happens


@pytest.mark.parametrize("content", ["", "[]", '{"headrace_version": 1}', '{"figures": {}, "settings": {}}'])
def test_a_damaged_file_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    assert kept(tmp_path) is None


def test_a_file_of_another_version_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kept(Figures(20.0, 0.1, 0.1, 0.2, 0.1, 5.0)).write(tmp_path)
    monkeypatch.setattr(module, "__version__", "0.0")
    assert kept(tmp_path) is None
    Kept(None).write(tmp_path / "other")
    assert not (tmp_path / "other").exists()
