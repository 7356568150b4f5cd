"""bench decode: shares of both ceilings, with the model's own routing and with a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine.__main__ import main
from engine.bench import shapes

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("extra", [[], ["--resident", "--cached", "1", "0.5", "--sync-window", "all"]])
def test_benchmarks_end_in_one_line_of_json(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, extra: list[str]
) -> None:
    path = str(checkpoint("deepseek_v3", None, True))
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 20)
    if extra:
        command = ["bench", "decode", path, "--rounds", "2", "--judge", str(tmp_path / "mine.txt"), *extra]
    else:
        command = ["bench", "io", path, "--rounds", "2", "--io-mode", "direct"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    if extra:
        resident, full, half = result["rows"]
        assert resident["share_of_resident"][1] == pytest.approx(1) and resident["passes_per_window"] is None
        assert full["hit_rate"] > half["hit_rate"] and half["passes_per_window"] > 1
        assert 0 < half["share_of_overlapped"][1] < half["share_of_serial"][1]
    else:
        assert result["share"] == pytest.approx(result["measured_gbps"] / result["ceiling_gbps"], rel=0.5)
        assert result["disk_share"] >= 1 and result["expert_kib"] == 12


TINY = {
    **shapes.SHAPES["qwen3_30b_a3b"], "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "vocab_size": 256,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


def routing(tokens: int, layers: int, top_k: int, experts: int) -> np.ndarray:
    """Expert ids with locality: every token repeats about half of the previous token's."""
    rng = np.random.default_rng(1)
    out = np.empty((tokens, layers, top_k), np.int32)
    for layer in range(layers):
        current = rng.permutation(experts)[:top_k]
        for token in range(tokens):
            if token % 2:
                current = rng.permutation(experts)[:top_k]
            out[token, layer] = current
    return out


def write(path: Path, experts: np.ndarray, prefilled: int = 0) -> Path:
    token, layer, rank = (a.reshape(-1) for a in np.indices(experts.shape))
    phase = np.where(token < prefilled, "prefill", "decode")
    columns = {"token": token, "phase": phase, "layer": layer, "rank": rank, "expert": experts.reshape(-1)}
    pd.DataFrame(columns).astype({"token": "int32", "expert": "int16"}).to_parquet(path)
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    assert main(["bench", "make", str(tmp_path / "tiny"), "--shape", "tiny"]) == 0
    return tmp_path / "tiny"


def test_bench_decode_with_a_trace(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    file = str(write(tmp_path / "t.parquet", routing(40, 4, 4, 16)))
    command = ["bench", "decode", str(tiny), "--trace", file, "--resident", "--rounds", "2", "--tokens", "10",
               "--cached", "1", "0.5", "--windows", "1", "all"]  # fmt: skip
    assert main(command) == 2
    assert "--trace with windows needs --foresight" in capsys.readouterr().err
    assert main([*command, "--foresight", "0.6", "0.9"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["window"] for row in result["rows"]] == ["-", "-", "1", "all", "all, all predicted"]
    limited, unlimited = result["rows"][3:]
    assert unlimited["window_recall_by_pass"][0] == 1 > limited["window_recall_by_pass"][0]
    assert unlimited["passes_per_window"] <= 2 < limited["passes_per_window"] + 1
    assert limited["share_of_serial"][1] >= limited["share_of_overlapped"][1] > 0
    assert main(["bench", "decode", str(tiny), "--trace", file, "--rounds", "1", "--tokens", "4", "--cached", "0.5"]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]
    assert alone["share_of_resident"] is None and alone["decode_tok_s"][1] > 0
    assert main(["bench", "decode", str(tiny), "--trace", str(write(tmp_path / "u.parquet", routing(40, 3, 4, 16)))]) == 2
    assert "does not fit" in capsys.readouterr().err
