"""Tests of `headrace rehearse`: from a shape's name to figures, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from rehearsals import shape

from engine.bench.machine import plain_reads
from engine.errors import HeadraceError
from engine.system.user_cache import compute_apart
from harness.cli import main
from harness.forecast.study.fit import Figures
from harness.rehearse import __main__ as command


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "shape", shape)
    monkeypatch.setattr(plain_reads, "PLAIN_MIB", 1)
    monkeypatch.setattr("harness.rehearse.forecasts.probe", lambda *_: Figures(10.0, 0.25, 0.0, 0.0, 0.5, 0.5))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["rehearse", *map(str, words)])
    return status, *capsys.readouterr()


def test_figures_of_a_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("kimi_k25", "--folder", tmp_path / "r", "--disk-gb", 0.0008)
    status, out, err = run(capsys, *where, "--cached", 0.5, "--tokens", 8, "--warm-up", 2, "--rounds", 1, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["model"] == "kimi_k25 (rehearsal: random weights)" and found["routing"].startswith(
        "made up with the locality of"
    )
    (row,) = found["rows"]
    assert row["about"] == "rehearsal: random weights" and row["tokens"] == 8 and 0 < row["hit_rate"] < 1
    low, middle, high = row["forecast_tok_s"]
    assert 0 < low < middle < high < 500
    assert row["knobs"]["io_mode"] == "direct" and row["share_of_serial"][1] > 0 and row["read_gb_per_token"] > 0
    status, out, _ = run(capsys, *where, "--clean")
    assert (status, (tmp_path / "r").exists()) == (0, False) and out.startswith("removed 0.000")


@pytest.mark.parametrize(("end", "status"), [("fails", 2), ("Ctrl-C", 130), ("SIGTERM", 143)])
def test_figures_before_an_end_are_printed(
    end: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def apart(what: str, *command: str, given: str = "") -> str:
        calls.append(what)
        if len(calls) == 1:
            return compute_apart(what, *command, given=given)
        if end == "fails":
            raise HeadraceError(f"{what} could not be computed: the disk is on fire")
        if end == "Ctrl-C":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    monkeypatch.setattr("harness.rehearse.settings.compute_apart", apart)
    where = ("kimi_k25", "--folder", tmp_path / "r", "--disk-gb", 0.0008, "--cached", 0.5, 0.75, "--json")
    try:
        found = run(capsys, *where, "--tokens", 4, "--warm-up", 1, "--rounds", 1)
    except SystemExit as e:
        found = int(str(e.code)), *capsys.readouterr()
    assert found[0] == status
    document = json.loads(found[1])
    assert [row["cached"] for row in document["rows"]] == [0.75] and document["unfinished"] == 1
    assert "tok/s" in found[2] and ("on fire" in found[2]) == (end == "fails")


def test_writing_alone_goes_to_the_cache_folder(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "kimi_k25", "--write", "--disk-gb", 0.01)
    folder = command.usual_folder("kimi_k25")
    assert status == 0 and str(folder) in out and (folder / "rehearsal.json").exists()
    assert run(capsys, "kimi_k25", "--clean")[0] == 0 and not folder.exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--clean"], "is no rehearsal, so nothing was removed"),
        (["--disk-gb", 0.0001], "--disk-gb 0.0001 is below"),
        (["--tokens", 0], "--tokens 0 is below 1"),
        (["--trace", "none.parquet"], "--trace none.parquet is not a file"),
        (["--like", "none"], "--like none is neither a file nor a known trace"),
    ],
)
def test_mistakes_are_one_line(
    words: list[object], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    status, _, err = run(capsys, "kimi_k25", "--folder", tmp_path / "new", *words)
    assert status == 2 and match in err and err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_an_unknown_shape_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    status, _, err = run(capsys, "kimi_k2_55")
    assert status == 2 and "shape kimi_k2_55 is unknown; did you mean kimi_k2_5" in err and err.count("\n") == 1
