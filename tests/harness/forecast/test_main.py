"""Tests of the command: text, JSON, plot and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.forecast.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


def test_a_profile(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(
        capsys, "deepseek_v4_flash", "device=m2max_96gb", "--cache-gb", "20,40", "--plot", str(tmp_path / "f.png")
    )
    assert status == 0 and (tmp_path / "f.png").stat().st_size > 10_000 and (tmp_path / "f.svg").exists()
    lines = out.splitlines()
    assert lines[0].startswith("DeepSeek V4 Flash: 43 layers of 256 experts, 6 a token")
    assert sum(line.startswith(("  4 ", "  3*", "  2*")) for line in lines) == 6
    assert "DeepSeek V4 Flash at 4 bits on m2max_96gb: " in lines[-1] and "trials" in lines[-1]


def test_json_has_what_the_text_has(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "deepseek_v4_flash", "device=m2max_32gb", "--json")
    found = json.loads(out)
    assert status == 0 and found["model"]["name"] == "deepseek_v4_flash" and len(found["localities"]) == 3
    assert all(row["tok_s"]["low"] < row["tok_s"]["middle"] < row["tok_s"]["high"] for row in found["rows"])
    assert sum(found["best"]["tok_s"]["shares"].values()) == pytest.approx(1)
    assert found["disk_gb"].keys() == {"4", "3", "2"} and found["ttft_s"].keys() == {"512", "8192"}


def test_a_model_that_does_not_fit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "deepseek_v4_pro", "device=m1_8gb")
    assert status == 0 and "does not fit on m1_8gb: it needs" in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kimi_k2.5", "device=m2max_96gb"], "is neither a folder nor a published shape; did you mean kimi_k2_5?"),
        (["kimi_k2_5", "device=m2max_69gb"], "device=m2max_69gb is unknown; did you mean m2max_96gb"),
        (["deepseek_v4_pro", "device=m2ultra_192gb"], "device=m2ultra_192gb has no disk_gbps: no source gives it; set"),
        (["deepseek_v4_pro", "device=m2max_96gb", "--cache-gb", "1"], "--cache-gb 1 is below one token's experts (12.8"),
        (["deepseek_v4_pro", "device=m2max_96gb", "--cache-gb", "x"], "--cache-gb x is no list of positive numbers"),
        (["deepseek_v4_pro", "m2max_96gb"], "m2max_96gb is neither device=NAME nor device.FIGURE=VALUE"),
        (["deepseek_v4_pro", "device.disk=3"], "device.disk=3 is unknown; did you mean disk_gbps"),
        (["deepseek_v4_pro", "device=m2max_96gb", "device.disk_gbps=fast"], "device.disk_gbps=fast is no positive number"),
        (["deepseek_v4_pro"], "mlx-lm has no such architecture, so that no layer of it can be measured here"),
        (["deepseek_v4_pro", "device=m2max_96gb", "--trace", "no.parquet"], "no.parquet"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    status, out, err = run(capsys, *words)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1


def test_a_user_who_waits_for_kernels_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.model.backend.compiles_first", lambda: "MLX compiles")
    assert run(capsys, "deepseek_v4_pro")[2].startswith("note: MLX compiles\n")
    assert "note" not in run(capsys, "deepseek_v4_pro", "device=m2max_96gb")[2]
