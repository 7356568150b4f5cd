"""Process: one measurement for a machine and its versions, and a stated figure if it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.plan.memory import process


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process.process_bytes.cache_clear()
    yield
    process.process_bytes.cache_clear()


def test_a_stored_figure_is_used_and_a_failure_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise HeadraceError("no memory")

    monkeypatch.setattr(process, "compute_apart", fail)
    assert process.process_bytes() == process.MEASURED_BYTES
    assert capsys.readouterr().err == ("note: a run's process is assumed to take 0.1 GB besides its model: no memory\n")
    process.process_bytes.cache_clear()
    process.process_file().parent.mkdir(parents=True)
    process.process_file().write_text('{"bytes": 123}')
    assert process.process_bytes() == 123


def test_the_file_names_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = process.process_file()
    monkeypatch.setattr(process, "version", lambda _: "0")
    assert process.process_file() != before


def test_a_tokenizer_counts_by_its_size(tmp_path: Path) -> None:
    assert process.tokenizer_bytes(tmp_path) == 0
    (tmp_path / "tokenizer.json").write_text("x" * 1000)
    assert process.tokenizer_bytes(tmp_path) == round(1000 * process.TOKENIZER_RATIO)
