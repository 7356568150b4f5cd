"""Every mistake of a user: one line that names the value, the limit and the remedy, exit status 2, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support import Cli, spawn

from engine.system.shipped import ROOT

CACHE = yaml.safe_load((ROOT / "search_spaces" / "kimi_mini.yaml").read_text())["cache_gb"]
CASES = [
    ("study=dmo", "study=dmo is unknown; did you mean demo?"),
    ("study=xyzzy", "study=xyzzy is unknown; choose one of: auto, demo, kimi_m2max"),
    ("search_space=nope", "search_space=nope is unknown; choose one of: auto, kimi_k2, kimi_mini"),
    ("budget.trails=3", "budget.trails is not a key; did you mean budget.trials?"),
    ("stud=demo", "stud is not a key; did you mean study?"),
    ("budget.trials=lots", "budget.trials=lots: 'lots' is not of type Integer"),
    ("budget.trials=0", "budget.trials=0 is below 1; raise it"),
    ("budget.hours=-1", "budget.hours=-1 is below 0; raise it"),
    ("trials", "trials is not an override"),
    ("demo", "demo is not an override KEY=VALUE; did you mean study=demo?"),
    ("dmo", "did you mean study=demo?"),
    ("--study=demo", "--study=demo is not an option; a setting has no dashes: study=demo"),
    ("--quality.text=x", "a setting has no dashes: quality.text=x"),
    ("--multirum", "--multirum is not an option; did you mean --multirun?"),
    ("budget.trials=3%#", "budget.trials=3%#: '3%#' is not of type int; give a number"),
    ("budget.trials=3,4", "budget.trials=3,4 has several values; give one, or run a study for each with -m"),
    ("guards.alone=(no", "give true or false"),
    ("objectives=[a=b", "its brackets cannot be read; close each"),
    ("bud get=3", "'bud get' cannot be a key; did you mean budget?"),
    ("budget=3", "budget=3: Invalid type assigned: int is not a subclass of Budget"),
    ("search_space=5", "search_space=5 is unknown; choose one of: auto, kimi_k2, kimi_mini"),
    ("search_space=nope.yaml", "search_space=nope.yaml cannot be read (No such file or directory); give a file"),
    ("~knobs.ssd_gbp", "knobs.ssd_gbp"),
    ("search_space.cach_gb=1", "search_space.cach_gb: cach_gb is not a knob; did you mean cache_gb?"),
    ("knobs.cach_gb=1", "knobs.cach_gb: cach_gb is not a knob; did you mean cache_gb?"),
    ("knobs.read_threads=3", "fix it with search_space.read_threads=VALUE"),
    ("search_space.cache_gb.high=0.001", f"search_space.cache_gb.low={CACHE['low']} is above its high=0.001"),
    ("search_space.cache_gb.lwo=1", "search_space.cache_gb.lwo is not a key of a float; did you mean low?"),
    ("search_space.cache_gb.type=flot", "search_space.cache_gb.type=flot is unknown"),
    ("search_space.cache_gb.low=small", "search_space.cache_gb.low=small is not a number"),
    ("search_space.cache_gb.low=0.0001", "cache_gb.low=0.0001 is below one token's experts (0.00075 GB for "),
    ("search_space.cache_gb=0.0001", "cache_gb=0.0001 is below one token's experts"),
    ("search_space.expert_bits.values=[7]", "expert_bits=7 is not a width that MLX supports; use one of 2, 3, 4"),
    ("search_space.expert_bits.values=[4,4]", "holds a value twice"),
    ("search_space.read_threads=0", "read_threads=0 is out of range: it must be above 0 and at most 256"),
    ("search_space.read_threads.low=1.5", "search_space.read_threads.low=1.5 is not a whole number"),
    ("search_space.evict_half_life.low=0", "search_space.evict_half_life.low=0 has no logarithm"),
    ("search_space.io_mode=mmap", "io_mode=mmap is unknown; choose one of: buffered, direct"),
    (
        "study.anchors=[{cache_gb:1}]",
        f"study.anchors[0]: cache_gb=1 is outside its search space ({CACHE['low']} .. {CACHE['high']})",
    ),
    ("study.anchors=[{cache:1}]", "study.anchors[0]: cache is not in the search space; did you mean cache_gb?"),
    ("study.name=../up", "study.name=../up names a folder"),
    ("device.memory_gb=0", "device.memory_gb=0 is not above 0"),
    ("device.usable_share=2", "device.usable_share=2 is outside 0 .. 1"),
    ("model.path=/nope", "checkpoint /nope does not exist; name its folder with model.path=DIR"),
    ("quality.text=/nope", "judge /nope cannot be read (No such file or directory)"),
    ("engine.module=nope_engine", "engine.module=nope_engine cannot be imported"),
    ("engine.module=math", "engine.module=math has no function load"),
    ("engine.module=math:nope", "engine.module=math:nope: math has no nope"),
    ("engine.command=x", "engine.command and engine.module=fake_engine are two engines; give one of them"),
    ("rounds=0", "rounds=0 is below 1; raise it"),
    ("objectives=[decode_tok_s]", "objectives=[decode_tok_s] has 1 entries; give two or three different metrics"),
    ("objectives=[decode_tok_s,watts]", "objectives: watts is not an objective"),
    ("constraints=['perplexty <= 3']", "perplexty is not measured; did you mean perplexity?"),
    ("constraints=['json_valid >= 0.9']", "set quality.json_prompts=FILE"),
    ("constraints=[fast]", "constraint 'fast' cannot be read; write METRIC <= NUMBER"),
    ("protocol.page_cache=hot", "protocol.page_cache=hot is unknown; choose one of: as_is, cold, warm"),
    ("protocol.state=warm", "protocol.state=warm is unknown; choose one of: prefilled, steady, cold"),
    ("protocol.state=cold", "protocol.state=cold is a state of this engine's cache, and fake_engine is another engine; set"),
    ("protocol.stop_error=2", "protocol.stop_error=2 is outside 0 .. 1; give a share"),
    ("confirm.runs=0", "confirm.runs=0 is below 1; raise it"),
    ("confirm.shar=0.1", "confirm.shar is not a key; did you mean confirm.share?"),
    ("sentinel.every=often", "'often' is not of type Integer"),
    ("sampler.name=bayes", "sampler.name=bayes is unknown"),
    ("sampler.name=cmaes", "supports a single objective, this study has 3; use auto"),
    ("storage.url=mysql://h/d", "storage.url=mysql://h/d is not a database that machines can share"),
    ("storage.url=postgresql://u:secret@127.0.0.1:1/d", "storage.url=postgresql://u:***@127.0.0.1:1/d cannot be reached"),
    ("knobs.cold_lowbit=0.75", "knobs.cold_lowbit: knob cold_lowbit was removed: cache_prior saved more reads"),
    ("search_space.cold_lowbit=[0,1]", "search_space.cold_lowbit: knob cold_lowbit was removed: "),
    ("search_space.read_threads={type:int,low:1,high:2,when:{bits_by:layer}}", "when.bits_by: knob bits_by was removed: "),
    ("study.anchors=[{lowbit_share: 0.5}]", "knob lowbit_share was removed: "),
    ("search_space.prefetch={type:choice,values:[off,previous_token]}", "value prefetch=previous_token was removed: "),
    (("knobs.prefetch_width=2", "search_space.prefetch=off"), "has no effect with prefetch=off; set prefetch=stale_gate"),
    ("search_space.prefetch=previous_token", "search_space.prefetch: knob value prefetch=previous_token was removed: "),
    ("knobs.prefetch_cap_mb=1", "knobs.prefetch_cap_mb: knob prefetch_cap_mb was removed: "),
    ("recommend.max_loss=-1", "recommend.max_loss=-1 is below 0; raise it"),
    ("recommend.speed_share=2", "recommend.speed_share=2 is outside 0 .. 1; give a share"),
    ("search_space.cold_drop={type:float,low:0,high:1}", "score them token by token with knobs.prefill_chunk=1"),
    ("results_dir=/dev/null/x", "results_dir=/dev/null/x is not writable (Not a directory); choose another"),
]


@pytest.mark.parametrize(("override", "expected"), CASES, ids=[str(override) for override, _ in CASES])
def test_one_line_and_status_2(cli: Cli, place: Path, override: str | tuple[str, ...], expected: str) -> None:
    status, out, err = cli(*([override] if isinstance(override, str) else override))
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert expected in err
    assert not (place / "results").exists() or not any((place / "results").rglob("*.parquet"))


def test_the_same_in_a_process_of_its_own(place: Path) -> None:
    process = spawn(place, "study=dmo")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err == "study=dmo is unknown; did you mean demo? (there are: auto, demo, kimi_m2max)\n"


def test_text_too_short_to_judge_with(cli: Cli, place: Path) -> None:
    (place / "short.txt").write_text("too short")
    status, _, err = cli(f"quality.text={place / 'short.txt'}")
    assert status == 2
    assert "has 9 characters; the limits are 400 and" in err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "config.json"),
        ({"model_type": "llama"}, "checkpoint"),
        ({"model_type": "no_such_architecture", "num_experts": 4}, "checkpoint"),
    ],
    ids=["empty folder", "not MoE", "unknown architecture"],
)
def test_checkpoints_that_the_engine_refuses(cli: Cli, place: Path, content: object, expected: str) -> None:
    if content:
        (place / "checkpoint" / "config.json").write_text(json.dumps(content))
    status, out, err = cli("engine.module=engine")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_kimi_without_its_checkpoint_says_what_it_needs(cli: Cli) -> None:
    status, _, err = cli("study=kimi_m2max", "model.path=/nope/Kimi")
    assert status == 2
    for part in ("/nope/Kimi", "moonshotai/Kimi-K2.5", "595 GB", "model.path=DIR", "96 GB", "study=demo"):
        assert part in err
    assert err.count("\n") <= 7


def test_another_study_in_the_folder_is_refused(cli: Cli, place: Path) -> None:
    assert cli("budget.hours=0", "budget.trials=1")[0] == 0
    for override, changed in (
        ("study.seed=3", "seed was 0 and is now 3"),
        ("knobs.ssd_gbps=0.2", "knobs.ssd_gbps was 0.1 and is now 0.2"),
        ("search_space.cache_gb.low=0.005", f"search_space.cache_gb.low was {CACHE['low']} and is now 0.005"),
        (f"quality.text={Path(__file__)}", "judge was"),
    ):
        status, _, err = cli(override, "budget.trials=1")
        assert (status, err.count("\n")) == (2, 1)
        assert changed in err
        assert "study.name=OTHER" in err
    assert cli("study.seed=3", "study.name=other", "budget.hours=0")[0] == 0
