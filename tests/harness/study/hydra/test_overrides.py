"""Overrides: composed as Hydra users expect, with plain texts, files and whole entries accepted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from support import Cli

from harness.study.hydra.overrides import pasted


def composed(cli: Cli, *overrides: str) -> dict:
    status, out, err = cli("--cfg", "job", *overrides)
    assert (status, err) == (0, "")
    return yaml.safe_load(out)


def test_both_studies_compose(cli: Cli) -> None:
    assert composed(cli)["study"]["name"] == "demo"
    kimi = composed(cli, "study=kimi_m2max")
    assert (kimi["study"]["name"], kimi["device"]["name"]) == ("kimi_m2max", "m2max_96gb")
    assert kimi["search_space"]["cache_gb"] == ["one_token", "limit_gb - resident - 1.5"]
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
    config = composed(cli, f"model.path={value}", *shlex.split(pasted("engine.command", value)))
    assert (config["model"]["path"], config["engine"]["command"]) == (value, value)


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


def test_a_study_given_as_a_file(cli: Cli, place: Path) -> None:
    """It is a whole configuration with or without the header, and may override groups by name or by file."""
    lines = ("defaults: [{override /search_space: kimi_k2}]", "study: {name: mine}", "budget: {trials: 3}")
    (place / "mine.yaml").write_text("\n".join(lines))
    (place / "space.yaml").write_text("cache_gb: [1, 2]\n")
    config = composed(cli, "study=mine.yaml")
    assert (config["study"]["name"], config["budget"]["trials"]) == ("mine", 3)
    assert "sync_window" in config["search_space"]
    assert composed(cli, "study=mine.yaml", "search_space=space.yaml")["search_space"] == {"cache_gb": [1, 2]}
