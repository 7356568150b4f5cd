"""The command: exit statuses, one line for a mistake, and the published studies as a real pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from two_studies import study

from engine.system.shipped import ROOT
from harness import cli
from harness.compare.__main__ import main

PUBLISHED = [str(ROOT / "results" / "published" / f"demo_ssd_{limit}") for limit in ("0.1", "0.3")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("studies")
    return [str(study(place / "a", 0)), str(study(place / "b", 1, factor=0.8))]


def test_a_real_pair(capsys: pytest.CaptureFixture[str]) -> None:
    """Reads limited to 0.1 and to 0.3 GB/s: the same settings are faster, and need the same memory."""
    assert main(["--json", *PUBLISHED, "--fail-on-regression", "5%"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["comparisons"]
    assert [d["name"] for d in one["differences"]] == ["ssd_gbps"] and found["exit_status"] == 0
    default = next(s for s in one["settings"] if s["name"] == "default")
    assert default["ratios"]["decode_tok_s"]["verdict"] == "better"
    assert default["ratios"]["peak_memory_gb"]["verdict"] == "noise" and default["ratios"]["perplexity"]["verdict"] == "same"
    assert one["fronts"]["verdict"] == "better" and one["settings_in_both"]["count"] == 10


def test_status_1_names_the_regression(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *folders, "--fail-on-regression", "5%"]) == 1
    assert "regression: b: tok/s of default is " in capsys.readouterr().out
    assert main([*folders, "--json", "--fail-on-regression=0.05"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_status"] == 1 and "regression: b: tok/s of default is " in err


def test_without_the_option_a_difference_is_no_failure(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(folders) == 0
    assert "regression" not in capsys.readouterr().out


@pytest.mark.parametrize("limit", ["5", "-1%", "much"])
def test_a_limit_that_is_no_share(limit: str, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*folders, f"--fail-on-regression={limit}"])
    assert end.value.code == 2 and "give a limit such as 5% or 0.05" in capsys.readouterr().err


def test_one_study_is_compared_with_nothing(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(folders[:1])
    assert end.value.code == 2 and "name two studies or more" in capsys.readouterr().err


def test_unknown_and_damaged_studies(tmp_path: Path, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    broken = study(tmp_path / "broken")
    whole = (broken / "trials.parquet").read_bytes()
    (broken / "trials.parquet").write_bytes(whole[: len(whole) // 2])
    for wrong, said in ((tmp_path / "nothing", "is neither a study's folder"), (broken, "is truncated or damaged")):
        assert main([folders[0], str(wrong)]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
