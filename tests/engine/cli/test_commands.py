"""The command line: text and figures on stdout; one line on stderr and exit status 2 for a user's mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.routing.read import read_trace

Capture = pytest.CaptureFixture[str]


def test_generate_prints_text_and_what_it_took(checkpoint: Callable[..., Path], capsys: Capture) -> None:
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["generate", "--model", path, "--prompt", "The mill", "--max-tokens", "8", "--cache-gb", "0.0005"]) == 0
    out = capsys.readouterr().out
    figures = dict(line.split(":", 1) for line in out.split("\n\n")[-1].strip().splitlines())
    assert figures["prompt"].strip().startswith("8 tokens")
    assert "8 tokens" in figures["decode"] and "tok/s" in figures["decode"]
    assert 0 <= float(figures["hit rate"]) <= 1
    assert float(figures["read"].split()[0]) > 0 and "GB" in figures["peak memory"]
    assert figures["mode"].strip() == "streamed float32 cpu buffered"


def test_measure_and_inspect_print_json(checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    path = str(checkpoint("deepseek_v3", None, True))
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 20)
    assert main(["measure", "--model", path, "--judge", str(tmp_path / "mine.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1
    command = ["measure", "--model", path, "--judge", str(tmp_path / "mine.txt"), "--by-layer"]
    assert main([*command, "--cache-gb", "0.0005", "--trace-out", str(tmp_path / "t.parquet")]) == 0
    table, _, figures = capsys.readouterr().out.partition("{")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [r[0] for r in rows] == ["0", "1", "2"]
    assert sum(int(r[-1]) for r in rows) == json.loads("{" + figures)["bytes_read"]
    assert read_trace(tmp_path / "t.parquet").experts.shape[1:] == (3, 4)
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("nothing is streamed: no layer reads anything\n{")
    assert main(["inspect", "--model", path, "--expert-bits", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["one_token_gb"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "--prompt", "x", "--model", "nowhere"], "checkpoint nowhere is not a folder"),
        (["generate", "--prompt", "x", "--expert-bits", "7"], "expert_bits=7 is not a width"),
        (["generate", "--prompt", "", "--model", "TINY"], "the prompt is empty"),
        (["measure", "--model", "TINY", "--judge", "none.txt"], "judge none.txt cannot be read"),
        (["measure", "--model", "TINY", "--cache-gb", "1e-6"], "is below one token's experts"),
        (["generate", "--model", "TINY", "--prompt", "x", "--trace-out", "no/t"], "the trace no/t cannot be written"),
    ],
)
def test_mistakes(checkpoint: Callable[..., Path], capsys: Capture, args: list[str], message: str) -> None:
    tiny = str(checkpoint("deepseek_v3", None, True))
    assert main([tiny if a == "TINY" else a for a in args]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("error: ")


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


def test_bench_trace_compares_turns_of_the_same_tokens(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.bench.decoding.trace.TURNS", 2)
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 20)
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["bench", "trace", path, "--rounds", "2", "--judge", str(tmp_path / "mine.txt")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["turns"] == 4 and result["mode"] == "reference float32 cpu"
    assert 0.1 < result["share"] < 10 and result["share_quartiles"][0] <= result["share"] <= result["share_quartiles"][1]


@pytest.mark.parametrize(
    "options",
    [
        ["bench", "io", "--sync-window", "all"],
        ["bench", "decode", "--cache-gb", "0.01"],
        ["bench", "decode", "--trace", "ROUTING", "--prefetch", "stale_gate"],
    ],
)
def test_a_bench_refuses_what_it_would_ignore(capsys: Capture, options: list[str]) -> None:
    routing = str(Path(__file__).parents[3] / "experiments" / "kimi_mini" / "routing_trace.parquet")
    assert main([routing if o == "ROUTING" else o for o in options]) == 2
    assert "has no effect: bench" in capsys.readouterr().err


def test_the_bench_of_hits_has_none_missing(checkpoint: Callable[..., Path], capsys: Capture) -> None:
    assert main(["bench", "hits", str(checkpoint("deepseek_v3", None, True)), "--rounds", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["misses"] == 0 and result["us_per_layer"][1] > 0 and result["layers"] == 3


def test_bench_lossy_has_a_row_a_setting(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [{}, {"cold_drop": 1.0}, {"cache_prior": 1.0}, {"top_k": 2}, {"resident_bits": 3}]
    monkeypatch.setattr("engine.bench.quality.lossy.settings", lambda top_k: settings)
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["bench", "lossy", path, "--judge", str(tmp_path / "mine.txt"), "--prefill-chunk", "32"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    none, drop, prior, narrow, bits = result["rows"]
    assert result["knobs"]["prefill_chunk"] == 32 and result["cached_share"] == pytest.approx(0.25)
    assert drop["dropped_share"] > 0 == none["dropped_share"] and prior["swapped_share"] > 0 == none["swapped_share"]
    assert max(r["read_mb_per_token"] for r in (drop, prior, narrow)) < none["read_mb_per_token"]
    assert none["nll_more"] == 0 and all(r["nll_more"] != 0 for r in (drop, prior, narrow, bits))
    assert main(["bench", "lossy", path, "--cold-drop", "1"]) == 2
    assert "--cold-drop has no effect: bench lossy goes through the lossy knobs itself" in capsys.readouterr().err
