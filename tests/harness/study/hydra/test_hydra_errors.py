"""Overrides and errors of the command line: composed configurations, quoting, own files, and one line per error."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from support import Cli, spawn

from engine import Judge
from harness.results.rows import read_trials
from harness.study.hydra.overrides import pasted


def composed(cli: Cli, *overrides: str) -> dict:
    status, out, err = cli("--cfg", "job", *overrides)
    assert (status, err) == (0, "")
    return yaml.safe_load(out)


def test_both_studies_compose(cli: Cli) -> None:
    assert composed(cli)["study"]["name"] == "demo"
    kimi = composed(cli, "study=kimi_m2max")
    assert (kimi["study"]["name"], kimi["device"]["memory_gb"]) == ("kimi_m2max", 96)
    assert kimi["search_space"]["cache_gb"] == ["one_token", "0.85 * limit_gb"]
    assert "ssd_gbps" not in kimi["knobs"]


def test_overrides(cli: Cli) -> None:
    config = composed(
        cli, "search_space.cache_gb.high=0.05", "search_space.read_threads=8", "knobs.ssd_gbps=0.1", "~search_space.io_mode",
        "study.name=other", "budget.hours=2", "study.anchors=[{cache_gb: 0.01, read_threads: 2}]",
    )  # fmt: skip
    assert config["search_space"]["cache_gb"]["high"] == 0.05
    assert config["search_space"]["read_threads"] == 8
    assert "io_mode" not in config["search_space"]
    assert config["knobs"] == {"ssd_gbps": 0.1}
    assert (config["study"]["name"], config["budget"]["hours"]) == ("other", 2)
    assert config["study"]["anchors"] == [{"cache_gb": 0.01, "read_threads": 2}]


VALUES = [
    "/Volumes/Big SSD/Qwen3 235B (4bit)", "epoch=9/ck", "100%#", "René/ck", "~/models/x", "a {b}: [c]", "[x] y", "x'y\"z",
    "1e3", "007", "2024", "true", "-x", "back\\slash\\", "!&;|<>*?`$(x)", "a, b (c)",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_text_stands_as_it_is_and_quoted(cli: Cli, value: str) -> None:
    assert composed(cli, f"model.path={value}")["model"]["path"] == value
    assert composed(cli, *shlex.split(pasted("engine.command", value)))["engine"]["command"] == value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        (("model.path=/a,b",), "/a,b"),
        (("-m", "model.path=/a, b (c)"), "/a, b (c)"),
        (('model.path="abc',), '"abc'),
        (("sampler.options.x=a(b",), "a(b"),
        (("sampler.options.x=100%#",), "100%#"),
        (("search_space.bits_plan=x=y'z.json",), "x=y'z.json"),
    ],
)
def test_what_is_refused_says_how_to_quote_it(cli: Cli, override: tuple[str, ...], value: str) -> None:
    status, out, err = cli(*override)
    assert (status, out, err.count("\n")) == (2, "", 1)
    told = err.strip().partition(" quoted like this: ")[2]
    group, _, key = override[-1].partition("=")[0].partition(".")
    config = composed(cli, *shlex.split(told))[group]
    assert (config["options"]["x"] if key == "options.x" else config[key]) == value


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("[peak_memory_gb <= 0.2, kl <= 1.05 * reference]", ["peak_memory_gb <= 0.2", "kl <= 1.05 * reference"]),
        ("['peak_memory_gb <= 0.2', \"json_valid>=0.9\"]", ["peak_memory_gb <= 0.2", "json_valid>=0.9"]),
        ("['peak_memory_gb <= 0.2', kl <= 0.1]", ["peak_memory_gb <= 0.2", "kl <= 0.1"]),
        ("[peak_memory_gb<=80]", ["peak_memory_gb<=80"]),
        ("peak_memory_gb <= 80", ["peak_memory_gb <= 80"]),
        ("[]", []),
    ],
)
def test_constraints_with_quotes_and_without(cli: Cli, given: str, expected: list[str]) -> None:
    assert composed(cli, f"constraints={given}")["constraints"] == expected


def test_a_whole_entry_and_a_file_take_the_place_of_what_the_space_has(cli: Cli, place: Path) -> None:
    space = composed(
        cli, "search_space.cache_gb=[1,500]", "search_space.read_block_kib={type: int, low: 8, high: 64}",
        "search_space.read_threads={high: 4}", "search_space.hot_share=[0.1, 0.5 * cores]",
    )["search_space"]  # fmt: skip
    assert space["cache_gb"] == [1, 500] and space["hot_share"] == [0.1, "0.5 * cores"]
    assert space["read_block_kib"] == {"type": "int", "low": 8, "high": 64}
    assert space["read_threads"] == {"type": "int", "low": 1, "high": 4}
    assert next(iter(space)) == "cache_gb"
    (place / "my space").mkdir()
    (place / "my space" / "a.yaml").write_text("cache_gb: [1, 2]\nprefetch: 'off'\n")
    for given in ("search_space=my space/a.yaml", f'search_space="{place}/my space/a.yaml"'):
        assert composed(cli, given)["search_space"] == {"cache_gb": [1, 2], "prefetch": "off"}
    assert composed(cli, "study=kimi_m2max", "search_space.cache_gb={type: float, low: 20, high: 40}")["search_space"][
        "cache_gb"
    ] == {"type": "float", "low": 20, "high": 40}


def test_options_may_stand_anywhere(cli: Cli) -> None:
    status, out, err = cli("study.seed=1", "--cfg", "job", "budget.trials=3")
    assert (status, err) == (0, "") and yaml.safe_load(out)["budget"]["trials"] == 3


def test_help_names_groups_and_knobs(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli("--help")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for part in ("study:        demo, kimi_m2max", "evict_half_life", "quality.text=FILE", "search_space:", "--multirun"):
        assert part in out


def test_from_another_folder_with_relative_paths(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    process = spawn(place, "results_dir=mine", "budget.trials=1", "quality.text=../judge.txt", cwd=elsewhere)
    out, err = process.communicate(timeout=150)
    assert (process.returncode, err) == (0, "")
    assert "rows  mine/demo/trials" in out
    assert len(read_trials(elsewhere / "mine" / "demo")) == 2
    assert [p.name for p in elsewhere.iterdir()] == ["mine"]


def test_several_studies_in_a_row(cli: Cli, place: Path) -> None:
    status, _, err = cli("-m", "study.name=a,b", "budget.hours=0", "constraints=[peak_memory_gb <= 80, kl <= 1]")
    assert (status, err) == (0, "")
    assert {p.name for p in (place / "results").iterdir()} >= {"a", "b"}
    sweep = ("study.name=a,b", "constraints=[peak_memory_gb <= 80],[kl <= 1]")
    status, _, err = cli("-m", *sweep, "study.seed=1", "budget.hours=0")
    assert (status, err.count("\n")) == (2, 4)


def test_a_users_own_text_is_another_judge(cli: Cli, place: Path) -> None:
    assert cli("budget.trials=1")[0] == 0
    (place / "mine.txt").write_text("Whoever opens the gate decides how fast the wheel will turn today. " * 30)
    assert cli("budget.trials=1", "quality.text=mine.txt", "study.name=mine")[0] == 0
    assert cli("budget.trials=1", "quality.text=mine.txt", "study.name=one", "quality.most=1")[0] == 0
    rows = [read_trials(place / "results" / name).iloc[0] for name in ("demo", "mine", "one")]
    assert len({r["eval_fingerprint"] for r in rows}) == 3
    assert [r["eval_texts"] for r in rows] == ["judge", "mine", "mine (1 of 2 texts)"]
    judges = [Judge.load(place / "results" / name / "judge.yaml") for name in ("demo", "mine", "one")]
    assert [j.fingerprint for j in judges] == [r["eval_fingerprint"] for r in rows]
    assert [len(j.texts) for j in judges] == [1, 2, 1]


def test_fixed_knobs_reach_the_engine_and_the_row(cli: Cli, place: Path) -> None:
    assert cli("budget.trials=1", "search_space.read_threads=7", "knobs.ssd_gbps=0.125")[0] == 0
    df = read_trials(place / "results" / "demo")
    assert df["read_threads"].tolist()[1] == 7
    assert df["ssd_gbps"].tolist()[1] == 0.125
    assert df["ssd_gbps"].isna().tolist()[0]  # the reference streams nothing
    assert '"read_threads": 7' in (place / "checkpoint" / "runs.log").read_text().splitlines()[1]
