"""Errors of Hydra: each one that a user causes in a file or on the command line becomes one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Cli

from harness.study.hydra.hydra_errors import explain


@pytest.mark.parametrize(
    ("content", "overrides", "expected"),
    [
        ("study: {name: q}", (), "study/q.yaml: study would be a key of study; make '# @package _global_' the first line"),
        ("budget: {trials: 3}", (), "make '# @package _global_' the first line of the file"),
        ("# @package _global_\nstudy: {nam: q}", (), "study/q.yaml: study.nam is not a key; did you mean study.name?"),
        ("# @package _global_\nbudget: {trials: ten}", (), "study/q.yaml: budget.trials: 'ten' is not of type Integer"),
        (
            "# @package _global_\nsearch_space:\n  cache_gb: [one_token, all_experts]",
            (),
            "study/q.yaml: search_space.cache_gb is a list, and the space has an entry of this name; "
            "write cache_gb: {type: float, low: one_token, high: all_experts}",
        ),
        (
            "# @package _global_\ndefaults: [{override /search_space: kimi_k2}]",
            ("search_space.cache_gb.high=60",),
            "search_space.cache_gb.high: the space has search_space.cache_gb as [LOW, HIGH]; give the whole entry: "
            "'search_space.cache_gb=[LOW, HIGH]'",
        ),
        ("# @package _global_", ("--cfg", "job", "-m"), "-m runs several studies and --cfg shows one; leave out -m"),
    ],
)
def test_a_study_of_ones_own(cli: Cli, place: Path, content: str, overrides: tuple[str, ...], expected: str) -> None:
    (place / "mine" / "study").mkdir(parents=True)
    (place / "mine" / "study" / "q.yaml").write_text(content)
    status, out, err = cli("--config-dir", "mine", "study=q", *overrides)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert expected in err


def test_a_file_is_named_as_the_command_line_has_it(cli: Cli, place: Path) -> None:
    (place / "mine.yaml").write_text("study: {nam: q}\n")
    status, out, err = cli("study=mine.yaml")
    assert (status, out, err) == (2, "", "mine.yaml: study.nam is not a key; did you mean study.name?\n")


def test_a_config_dir_that_is_missing(cli: Cli) -> None:
    status, _, err = cli("--config-dir", "nowhere")
    assert status == 2 and "--config-dir=nowhere is not a folder" in err


def test_other_exceptions_are_not_explained() -> None:
    assert explain(ValueError("something else")) is None
    assert explain(PermissionError(13, "Permission denied", "/x")) == (
        "results_dir: /x is not writable (Permission denied); choose another with results_dir=DIR"
    )
