"""Checks: each mistake is one line; `test_bad_input` has them all through the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import ConfigError, ResultsError
from harness.space.parse import space_from_config
from harness.study.checks import (
    check_cache,
    check_fixed_knobs,
    check_reference,
    check_together,
    check_writable,
    missing_checkpoint,
)
from harness.study.constraints import parse

RANGE = {"type": "float", "low": 0.01, "high": 0.08}


def test_the_lowest_cache_holds_one_tokens_experts() -> None:
    moving = space_from_config({"cache_gb": RANGE}, {})
    fixed = space_from_config({"read_threads": [1, 8]}, {"cache_gb": 0.01})
    for space, key in ((moving, "search_space.cache_gb.low"), (fixed, "cache_gb")):
        check_cache(space, [0.01, 0.02], "m")
        with pytest.raises(ConfigError, match=rf"{key}=0.01 is below one token's experts \(0.02 GB for m\); raise it"):
            check_cache(space, [0.02, 0.03], "m")
    check_cache(space_from_config({"read_threads": [1, 8]}, {}), [], "m")


def test_a_fixed_knob_has_an_effect() -> None:
    space = space_from_config({"cache_gb": RANGE}, {"prefetch_depth": 2})
    with pytest.raises(ConfigError, match=r"knobs\.prefetch_depth=2 has no effect with prefetch=off"):
        check_fixed_knobs(space, [{"cache_gb": 0.01, "prefetch": "off"}])


def test_a_relative_constraint_needs_a_reference_that_fits() -> None:
    speed, quality = parse("decode_tok_s >= 0.5 * reference"), parse("perplexity <= 1.02 * reference")
    check_reference([speed, quality], 8.0, 9.0)
    check_reference([quality], 10.0, 9.0)
    with pytest.raises(ConfigError, match="needs the reference, which takes 10 GB of at most 9 GB; give a number"):
        check_reference([quality, speed], 10.0, 9.0)


def test_a_missing_checkpoint_to_download_is_described() -> None:
    model = {"about": "org/name", "size_gb": 595.0, "hub": "org/name-on-hub"}
    device = {"memory_gb": 96.0, "usable_share": 0.5, "gpu_memory_gb": None, "note": "a laptop"}
    text = missing_checkpoint({"model": model, "device": device, "study": {"name": "big"}}, Path("/nope"))
    for part in (
        "study=big",
        "org/name",
        "595 GB",
        "hf download org/name-on-hub,",
        "model.path=DIR",
        "at most 48 (a laptop)",
    ):
        assert part in text


def test_a_folder_that_is_not_writable() -> None:
    with pytest.raises(ResultsError, match="results_dir=/dev/null is not writable"):
        check_writable(Path("/dev/null/study"))


def test_a_state_that_cannot_be_given_is_refused() -> None:
    space: Any = SimpleNamespace(entries=[], fixed={"cold_drop": 0.5, "prefill_chunk": 1})
    engine = {"command": None, "module": "engine"}
    c = {"storage": {"url": None}, "rounds": 1, "protocol": {"state": "steady"}, "engine": engine}
    with pytest.raises(ConfigError, match="state=steady with cold_drop: its choices depend on what is cached"):
        check_together(c, space)
    check_together({**c, "protocol": {"state": "cold"}}, space)
    space.fixed["cold_drop"] = 0.0
    check_together(c, space)
