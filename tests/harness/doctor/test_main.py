"""The command: its report, its JSON document, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.doctor import __main__ as doctor
from harness.doctor.check import FAILS, WORKS, Result

RESULTS = [
    Result("limits", "memory", WORKS, "20 GB", "", 0.0, {"memory_limit_gb": 20.0}),
    Result("calls", "keeping the machine awake", FAILS, "", "no bus", 0.1, {}),
]


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(folder: Path, told: object) -> list[Result]:
        assert folder.is_dir()
        for result in RESULTS:
            told(result)  # type: ignore[operator]
        return RESULTS

    monkeypatch.setattr(doctor, "examine", examine)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Limits\n   memory: 20 GB\n" in out
    assert " ! keeping the machine awake: fails: no bus\n" in out
    assert " ! keeping the machine awake. The machine may go to sleep during a study.\n" in out
    assert "   Memory: 18 GB may be used by a study (90% of 20 GB).\n" in out
    assert json.loads(out.partition("Document for a report\n")[2])["headrace_doctor"] == 1
    assert not list(tmp_path.iterdir()), "nothing stays behind"


def test_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--folder", str(tmp_path), "--json"]) == 0
    assert [c["state"] for c in json.loads(capsys.readouterr().out)["checks"]] == [WORKS, FAILS]


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--folder", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: no file can be written in ")
