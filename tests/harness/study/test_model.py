"""The model of a study: replaced files end the search, and a label does not make another model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from stored import ONE, TWO, fill
from support import Cli, spawn, wait_for

from engine.checkpoint.files.headers import read_headers
from engine.model.backend import device_name
from harness.merge import main as merge
from harness.results.rows import read_trials

OLD, NEW = "2-" + "a" * 16, "2-" + "b" * 16


def exchange(checkpoint: Path) -> None:
    """The signs of one attention matrix, in place: size, names and headers stay."""
    files = sorted(checkpoint.glob("*.safetensors"))
    entry = next(e for name, e in read_headers(files).items() if name.endswith("o_proj.weight"))
    with open(files[entry.file], "r+b") as f:
        f.seek(entry.offset)
        weights = np.frombuffer(f.read(entry.nbytes), np.uint16)
        f.seek(entry.offset)
        f.write((weights ^ 0x8000).tobytes())


def test_files_exchanged_between_two_runs_are_refused(place: Path, cli: Cli, checkpoint) -> None:
    path = shutil.copytree(checkpoint("deepseek_v3"), place / "tiny")
    command = ["engine.module=engine", f"model.path={path}", "budget.trials=1", "search_space.cache_gb=0.001",
               "protocol.timed_tokens=8", "quality.most=1", "~knobs.ssd_gbps", "~search_space.cold_bits",
               "~search_space.hot_share"]  # fmt: skip
    assert cli(*command)[0] == 0
    manifest = json.loads((place / "results" / "demo" / "manifest.json").read_text())
    row = read_trials(place / "results" / "demo").iloc[0]
    assert row["status"] == "ok", row["status_reason"]
    assert row[["model", "device", "backend"]].tolist() == ["tiny", device_name(), "cpu"]
    assert [manifest[name] for name in ("model", "device", "backend")] == ["tiny", device_name(), "cpu"]
    exchange(path)
    status, _, err = cli(*command)
    assert (status, err.count("\n")) == (2, 1)
    assert f"holds another study: model was {row['model_fingerprint']} and is now 2-" in err and "(another model)" in err
    assert len(read_trials(place / "results" / "demo")) == 2
    exchange(path)  # back again: in another state, of the same model
    assert cli(*command)[0] == 0


def test_an_older_fingerprint_is_named_in_the_error(place: Path, direct: Cli) -> None:
    fingerprint = place / "checkpoint" / "fingerprint"
    fingerprint.write_text("0" * 16)
    assert direct("budget.trials=1")[0] == 0
    fingerprint.write_text(NEW)
    status, _, err = direct("budget.trials=1")
    assert (status, err.count("\n")) == (2, 1)
    assert "a fingerprint of an older version" in err and "another model" not in err and "study.name=OTHER" in err


@pytest.mark.parametrize("within", [True, False], ids=["during a run", "between runs"])
def test_files_exchanged_while_the_search_runs_end_it(place: Path, direct: Cli, within: bool) -> None:
    """The run during the exchange leaves no row; with the old files back, the study resumes."""
    fingerprint, runs = place / "checkpoint" / "fingerprint", place / "checkpoint" / "runs.log"
    fingerprint.write_text(OLD)
    (place / "checkpoint" / "slow_s").write_text("1.5" if within else "0")
    process = spawn(place, "budget.trials=2", f"protocol.cool_down_s={0 if within else 2}")
    wait_for(runs.exists)
    if not within:
        wait_for((place / "results" / "demo" / "trials.parquet").exists)
    fingerprint.write_text(NEW)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 2 and err.count("\n") == 1
    assert f"its fingerprint was {OLD} and is now {NEW}, another model; put the files back" in err
    df = read_trials(place / "results" / "demo") if not within else None
    assert df is None or df["model_fingerprint"].unique().tolist() == [OLD]
    fingerprint.write_text(OLD)
    (place / "checkpoint" / "slow_s").write_text("0")
    status, _, err = direct("budget.trials=2")
    assert (status, err) == (0, "")
    df = read_trials(place / "results" / "demo")
    assert len(df) == 3 and set(df["model_fingerprint"]) == {OLD} and set(df["status"]) == {"ok"}


def test_a_label_makes_no_other_study(place: Path, direct: Cli) -> None:
    assert direct("budget.trials=1")[0] == 0
    status, out, err = direct("budget.trials=2", "model.name=mine", "device.name=laptop")
    assert (status, err) == (0, "")
    assert out.startswith("demo: mine on a machine with ")
    df = read_trials(place / "results" / "demo")
    assert df["model"].tolist() == [place.name, place.name, "mine"]
    assert df["device"].isna().all() and df["backend"].isna().all()  # this engine reports neither


def test_a_read_limit_of_the_device_is_a_note(place: Path, direct: Cli) -> None:
    note = "note: reads are limited to 0.1 GB/s by device=linux_2core; to remove the limit: '~knobs.ssd_gbps'"
    status, out, _ = direct("budget.trials=1")
    assert status == 0 and note in out and f"{place.name} on a machine with" in out and "reads limited to 0.1 GB/s" in out
    for override in ("~knobs.ssd_gbps", "knobs.ssd_gbps=0.1"):
        status, out, _ = direct("budget.trials=1", "study.name=other", f"results_dir={place / str(len(override))}", override)
        assert status == 0 and "note: reads are limited" not in out
        assert ("reads limited to 0.1 GB/s" in out) == ("=" in override)


def test_merge_names_models_by_fingerprint_not_by_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = fill(tmp_path / "a", range(1), ONE, model_fingerprint=OLD, model="mine")
    b = fill(tmp_path / "b", range(1, 2), TWO, model_fingerprint=OLD, model="yours")
    assert merge([str(tmp_path / "both"), a, b]) == 0
    c = fill(tmp_path / "c", range(1, 2), TWO, model_fingerprint=NEW, model="mine")
    d = fill(tmp_path / "d", range(1, 2), TWO, model_fingerprint="0" * 16, model="mine")
    capsys.readouterr()
    assert merge([str(tmp_path / "out"), a, c]) == 2
    assert f"rows of 2 models (mine {OLD}; mine {NEW}) are not comparable" in capsys.readouterr().err
    assert merge([str(tmp_path / "out"), a, d]) == 2
    assert "fingerprint of an older version" in capsys.readouterr().err


def test_rows_name_no_place_of_this_machine(place: Path, cli: Cli) -> None:
    (place / "checkpoint" / "faults.json").write_text('{"2": "nowhere"}')
    assert cli("budget.trials=2", "search_space.read_threads=2")[0] == 0
    df = read_trials(place / "results" / "demo").query("status != 'ok'")
    assert set(df["status"]) == {"crash"}
    text = " ".join([*df["status_reason"], *df["log_tail"]])
    assert df["status_reason"].eq(f"{place.name}/nowhere/shard: No such file or directory; check the path").all()
    assert "FileNotFoundError" in text and place.name in text
    assert str(place) not in text and os.sep + "fake_engine" not in text.replace("headrace/tests/harness/fake_engine", "")
