"""Child process of a run: its requests and results, engine adapters and commands, and what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import FSYNC, ROOT

from engine import Judge, Knobs, Protocol, ceiling_tok_s, load
from engine.quality.json_prompts import JsonPrompts
from engine.quality.quality import quality
from engine.quality.reference import reference_file, reference_for, take_reference
from engine.system.user_cache import store_in_cache
from harness.results.columns import NAMES
from harness.run.worker import measure
from harness.study.engines import CommandEngine, Footprint, engine_at, no_footprint

STALLING = """
    from engine import Measurement

    class Steady:
        def load(checkpoint, knobs):
            return Steady()

        def measure(self, judge, protocol, keep_going):
            assert protocol.warm_up_tokens == 3
            times = []
            for _ in range(protocol.timed_tokens or 4):
                times.append(20.0)
                if not keep_going(times):
                    break
            whole = len(times) == protocol.timed_tokens
            return Measurement(50.0, 1.0, 4.0 if whole else None, token_ms=tuple(times), ended_early=not whole)

    class Bare:
        def load(checkpoint, knobs):
            return Bare()

        def measure(self, judge):
            return {"decode_tok_s": 5, "peak_memory_gb": 1.0, "perplexity": 4.0, "colour": "blue"}
"""


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A request with the given fields; its folder can be imported from."""
    (tmp_path / "judge.txt").write_text("The wheel turns when there is water. " * 12)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "outside.py").write_text(textwrap.dedent(STALLING))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("outside", "my_engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    least = {"checkpoint": str(tmp_path / "checkpoint"), "judge": str(tmp_path / "judge.txt"), "knobs": {"cache_gb": 0.0005}}
    return lambda **more: {**least, **more}


def written(path: Path, code: str) -> str:
    """The command that runs a script."""
    path.write_text(textwrap.dedent(code))
    return f"{sys.executable} '{path}'"


def test_the_example_in_the_documentation_runs(tmp_path: Path, request_of: Callable[..., dict[str, Any]]) -> None:
    page = (ROOT / "docs" / "own-engine.md").read_text(encoding="utf-8")
    (tmp_path / "my_engine.py").write_text(page.split("```python\n")[1].split("```")[0])
    result = measure(request_of(engine="my_engine:Mine", knobs={"cache_gb": 2.0}, beat=str(tmp_path / "beat")))
    assert (result["figures"]["decode_tok_s"], result["figures"]["peak_memory_gb"]) == (7, 3)
    assert set(result["figures"]) <= set(NAMES)
    assert (result["protocol"], result["token_ms"], result["ended_early"]) == ("engine's own", None, False)
    assert not (tmp_path / "beat").exists()  # this engine reports no progress
    engine = engine_at("my_engine:Mine")
    footprint = engine.footprint(tmp_path, Knobs())
    assert footprint == no_footprint(tmp_path) and footprint.architecture == "unknown" and footprint.one_token_gb == 0
    assert footprint.fingerprint != no_footprint(tmp_path / "other").fingerprint
    for one in (engine, CommandEngine("measure")):
        assert one.ceiling_tok_s(tmp_path, Knobs(), Judge(()), Protocol()) is None
    assert engine_at("engine").ceiling_tok_s is ceiling_tok_s


def test_a_run_that_is_too_slow_is_stopped(tmp_path: Path, request_of: Callable[..., dict[str, Any]]) -> None:
    asked = request_of(
        engine="outside:Steady", protocol={"warm_up_tokens": 3, "timed_tokens": 200}, beat=str(tmp_path / "b")
    )
    for below, tokens in ((60.0, 50), (40.0, 200)):  # the engine makes 50 tokens/s; looks are after 50 and 100 of 200
        result = measure({**asked, "stop": {"below_tok_s": below, "error": 0.01, "noise": 0.02}})
        assert len(result["token_ms"]) == tokens and result["ended_early"] == (tokens < 200)
        assert (result["figures"]["perplexity"] is None) == result["ended_early"]
    assert result["protocol"] == Protocol(3, 200).as_dict()
    assert (tmp_path / "b").exists()
    assert result["figures"]["timed_s"] == pytest.approx(sum(result["token_ms"]) / 1e3)


@pytest.mark.parametrize(
    ("more", "error", "reason"),
    [
        ({"engine": "outside:Bare"}, "HeadraceError", "colour is not a figure"),
        ({"engine": "outside:None"}, "ConfigError", "outside has no None; name a class"),
        ({"engine": "nowhere.at.all"}, "ConfigError", "engine.module=nowhere.at.all cannot be imported"),
        ({"engine": "csv"}, "ConfigError", "engine.module=csv has no function load"),
        ({"engine": "outside:Steady", "protocol": {"warm_up": 3}}, "HeadraceError", "warm_up is not a field"),
        ({"engine": "outside:Steady", "protocol": {"page_cache": "warm"}, "knobs": {"cache_gb": 1.0, "io_mode": "direct"}},
         "KnobError", "page_cache=warm has no effect with io_mode=direct"),
        ({"engine": "outside:Steady", "protocol": {"warm_up_tokens": 3, "timed_tokens": 5}, "quality": {"kl": True}},
         "HeadraceError", "kl is requested, but this engine does not measure it"),
        ({"engine": "outside:Steady", "protocol": {"timed_tokens": 99}, "stop": {"below_tok_s": -1, "error": 0.01}},
         "HeadraceError", "stop_below_tok_s=-1 is not between"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    request_of: Callable[..., dict[str, Any]], more: dict[str, Any], error: str, reason: str
) -> None:
    result = measure(request_of(**more))
    assert result["error"] == error and reason in result["reason"] and "\n" not in result["reason"]


def test_a_command_measures(tmp_path: Path, request_of: Callable[..., dict[str, Any]]) -> None:
    code = """
        import json, sys
        asked = json.load(sys.stdin)
        if asked.get("footprint"):
            print("{}" if asked["knobs"]["cache_gb"] is None else json.dumps({"one_token_gb": asked["knobs"]["cache_gb"]}))
        else:
            print("warming up", asked["protocol"]["warm_up_tokens"])
            print(json.dumps({"decode_tok_s": 5, "peak_memory_gb": 1.5, "perplexity": 4.0, "token_ms": [200, 201.5]}))
    """
    command = written(tmp_path / "engine.py", code)
    result = measure(request_of(command=command, protocol={"warm_up_tokens": 5}))
    assert (result["figures"]["decode_tok_s"], result["token_ms"], result["protocol"]) == (5, [200, 201.5], "engine's own")
    engine, whole = CommandEngine(command), no_footprint("c")
    assert (result["load_s"], result["figures"]["timed_s"]) == (None, 0.4015)
    assert engine.footprint("c", Knobs(cache_gb=2.0)) == Footprint(whole.architecture, whole.fingerprint, one_token_gb=2.0)
    assert engine.footprint("c", Knobs()) == whole  # after {} the command is not called again
    assert engine.footprint("c", Knobs(cache_gb=3.0)) == whole


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("print('{\"decode_tok_s\": 1}')", "the figures lack peak_memory_gb"),
        (
            'print(\'{"decode_tok_s": NaN, "peak_memory_gb": 1, "perplexity": 1}\')',
            "decode_tok_s: NaN is not a JSON number",
        ),
        ("print('done')", "answered 'done'; print a JSON object as the last line"),
        ("raise SystemExit(3)", "exit status 3"),
        ('print(\'{"error": "MemoryError", "reason": "no room\\\\nat all"}\')', "no room at all"),
    ],
)
def test_a_command_that_answers_wrongly(
    tmp_path: Path, request_of: Callable[..., dict[str, Any]], answer: str, reason: str
) -> None:
    result = measure(request_of(command=written(tmp_path / "engine.py", answer)))
    assert reason in result["reason"] and "\n" not in result["reason"]
    assert result["error"] == ("MemoryError" if "no room" in reason else "HeadraceError")


def test_quality_takes_a_pass_of_its_own(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    request_of: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "fsync", FSYNC)  # only what is on the disk leaves the page cache
    path = checkpoint("deepseek_v3", None, True)
    (tmp_path / "json.yaml").write_text("max_tokens: 4\nprompts:\n- {name: a, examples: '', open: '{'}\n")
    text = [{"name": "a", "kind": "x", "prompt": "The wheel ", "continuation": "turns when there is water. " * 4}]
    (tmp_path / "judge.yaml").write_text(json.dumps(text))
    judge, prompts = Judge.load(tmp_path / "judge.yaml"), JsonPrompts.load(tmp_path / "json.yaml")
    with load(path) as engine:
        store_in_cache(reference_file(engine.checkpoint, judge, prompts), take_reference(engine, judge, prompts).to_bytes())
    knobs = {"cache_gb": 0.0001, "expert_bits": 4}
    asked = request_of(
        engine="engine", checkpoint=str(path), knobs=knobs, judge=str(tmp_path / "judge.yaml"), beat=str(tmp_path / "beat"),
        protocol={"timed_tokens": 9, "page_cache": "cold"},
        quality={"kl": True, "json_prompts": str(tmp_path / "json.yaml")},
    )  # fmt: skip
    begin = time.perf_counter()
    result = measure(asked)
    whole, figures = time.perf_counter() - begin, result["figures"]
    spent = [
        *(result[f"{name}_s"] for name in ("prepare", "load", "score")),
        *(figures[f"{n}_s"] for n in ("prefix", "fill", "timed")),
    ]
    assert all(seconds > 0 for seconds in spent) and sum(spent) <= whole
    assert figures["timed_s"] == pytest.approx(sum(result["token_ms"]) / 1e3)
    with load(path, Knobs(**knobs)) as engine:
        expected = quality(engine, judge, reference_for(engine.checkpoint, judge, prompts), prompts)
        tokens = engine.continuation_tokens(judge)
    for name in ("kl", "json_valid", "perplexity", "perplexity_se", "nll", "scored_tokens"):
        assert figures[name] == getattr(expected, name), name
    assert figures["kl"] > 0
    assert (figures["decode_tokens"], len(result["token_ms"]), result["page_cache_by"]) == (9, 9, "posix_fadvise")
    assert figures["page_cached_before"] == 0 < figures["page_cached_after"]
    assert result["protocol"] == Protocol(timed_tokens=9, page_cache="cold").as_dict()
    assert (tmp_path / "beat").exists()
    json.dumps(result)
    larger = measure({**asked, "limit_gb": 1e3})["figures"]
    assert figures["scoring_cached_share"] == figures["cached_share"] < 1 == larger["scoring_cached_share"]
    for name in ("kl", "json_valid", "perplexity", "timed_nll", "misses", "cached_share"):
        assert larger[name] == figures[name], name
    alone = {"protocol": {"timed_tokens": 9, "score": False}, "quality": {"json_prompts": str(tmp_path / "json.yaml")}}
    unscored = measure({**asked, **alone})["figures"]
    assert (unscored["kl"], unscored["perplexity"]) == (None, None)
    assert (unscored["json_valid"], unscored["timed_nll"]) == (figures["json_valid"], figures["timed_nll"])
    for _ in range(5):  # one stalled token among few hides any difference: no result is sure then
        early = measure({**asked, "stop": {"below_tok_s": 1e9, "error": 0.01}, "protocol": {}})
        if early["ended_early"]:
            break
    assert early["ended_early"] and early["figures"]["perplexity"] is early["figures"]["kl"] is None
    assert early["figures"]["decode_tokens"] == tokens // 2


def test_prompts_are_kept_and_restored(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request_of: Callable[..., dict[str, Any]],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = request_of(
        engine="engine", checkpoint=str(checkpoint("qwen3_moe")), knobs={"cache_gb": 0.0008}, kept_gb=1.0,
        protocol={"timed_tokens": 9, "prefill": "restored", "score": False},
    )  # fmt: skip
    first, second = measure(asked)["figures"], measure(asked)["figures"]
    assert (first["prefill"], second["prefill"]) == ("untimed", "restored")
    assert {run[name] for run in (first, second) for name in ("ttft_ms", "prefill_tok_s")} == {None}
    for name in ("timed_nll", "hits", "misses", "bytes_read"):
        assert first[name] == second[name], name


def test_another_engine_computes_its_prompts(request_of: Callable[..., dict[str, Any]]) -> None:
    asked = request_of(engine="outside:Steady", protocol={"warm_up_tokens": 3, "timed_tokens": 2, "prefill": "restored"})
    assert measure(asked)["figures"]["prefill"] == "real"


def test_scoring_ends_early_by_the_likelihoods_that_the_unchanged_model_left(
    checkpoint: Callable[..., Path], tmp_path: Path, request_of: Callable[..., dict[str, Any]]
) -> None:
    """The timed part is complete either way; the figures of a scoring that ended early have no perplexity."""
    path, own = checkpoint("deepseek_v3", None, True), tmp_path / "own.npy"
    common = {"engine": "engine", "checkpoint": str(path), "protocol": {"timed_tokens": 9}}
    whole = measure(request_of(**common, keep_nll=str(own)))["figures"]
    nll = np.load(own)
    assert (len(nll), nll.mean()) == (whole["scored_tokens"], whole["nll"])
    bound = {"text": "perplexity <= 1", "value": 1.0, "upper": True, "constraint": True}
    rule = {"error": 0.01, "tokens": len(nll), "reference": str(own), "noise": 0.1, "bounds": [bound], "rivals": []}
    lossy = {"cache_gb": 0.0001, "expert_bits": 4}
    result = measure({**request_of(), **common, "knobs": lossy, "stop_scoring": rule, "keep_nll": None})
    stopped, figures = result["scoring_stopped"], result["figures"]
    assert stopped["reason"] == "violates perplexity <= 1"
    assert len(nll) // 4 <= stopped["tokens"] == figures["scored_tokens"] < len(nll)
    assert (figures["perplexity"], figures["nll"], figures["decode_tokens"]) == (None, None, 9)
    larger = measure({**request_of(), **common, "knobs": lossy, "stop_scoring": rule, "limit_gb": 1e3})
    assert larger["scoring_stopped"] == stopped and larger["figures"]["scoring_cached_share"] == 1
    complete = measure({**request_of(), **common, "knobs": lossy})
    assert complete["scoring_stopped"] is None
    assert complete["figures"]["timed_nll"] == figures["timed_nll"]
    assert stopped["at_least"] < complete["figures"]["perplexity"] < stopped["at_most"]


def test_the_child_imports_no_harness_library() -> None:
    """Optuna, pandas and Hydra would add to the peak memory that is measured as the engine's."""
    code = "import sys, harness.run.worker; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120)
    heavy = {"optuna", "pandas", "hydra", "omegaconf", "sqlalchemy", "pyarrow", "rich", "matplotlib"}
    assert heavy.isdisjoint(done.stdout.split())
