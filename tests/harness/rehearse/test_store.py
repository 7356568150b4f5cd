"""Tests of finding, writing and removing a rehearsal, and of the locality it is made up with."""

from __future__ import annotations

from pathlib import Path

import pytest
from rehearsals import plan, shape
from stores import contents, one_line

from engine import HeadraceError
from engine.knobs import GB
from engine.routing.fitted import FITTED
from engine.system.shipped import EXPERIMENTS
from harness.rehearse import store as module
from harness.rehearse.store import facts, locality_of, removed, written

PLAIN = FITTED["kimi_mini"]


def disk_gb(distinct: int) -> float:
    one = plan(distinct=distinct)
    return (one.resident_bytes + one.experts_bytes) / GB * 1.001


def test_it_is_written_once_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r"
    first = written(shape("kimi_k25"), path, disk_gb(2), PLAIN)
    assert "of random weights into" in capsys.readouterr().err
    before = contents(path)
    again = written(shape("kimi_k25"), path, 40, FITTED["olmoe_1b_7b"])
    assert contents(path) == before and not capsys.readouterr().err, "whatever disk space is given now"
    assert (first.distinct, again.locality, again.gb) == (2, PLAIN, first.gb)
    assert first.gb * GB == sum(map(len, before.values()))
    said = facts(first)
    assert said["model"] == "kimi_k25 (rehearsal: random weights)" and said["distinct_layers"] == 2 and said["layers"] == 5
    assert said["gb_per_token_without_cache"] == pytest.approx(said["full_experts_gb"] / 4)
    (path / "notes.txt").write_text("mine")
    assert "1 other files stay there (notes.txt" in removed(path)
    assert contents(path) == {"notes.txt": b"mine"}


def test_another_shape_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    written(shape("kimi_k25"), tmp_path / "r", disk_gb(1), PLAIN)
    with pytest.raises(HeadraceError, match=r"holds a rehearsal of kimi_k25 .* remove it with --clean") as e:
        written(shape("olmoe"), tmp_path / "r", 40, PLAIN)
    one_line(e)


def test_locality_by_name_or_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    assert locality_of(None).source.startswith("Qwen3-30B-A3B") and locality_of("kimi_mini") is PLAIN
    monkeypatch.setattr(module, "fit", lambda chosen, experts, source: (chosen.shape, experts, source))
    found: object = locality_of(str(EXPERIMENTS / "kimi_mini" / "routing_trace.parquet"))
    assert found == ((4096, 6, 4), 64, "routing_trace.parquet (4096 decoded tokens)")
    with pytest.raises(
        HeadraceError, match="--like kimi_mimi is neither a file nor a known trace; did you mean kimi_mini"
    ) as e:
        locality_of("kimi_mimi")
    one_line(e)
