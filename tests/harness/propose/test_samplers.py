"""Samplers: the choice of `auto`, samplers by name, and rejected names and options."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from harness import ConfigError
from harness.propose.samplers import has_torch, is_random_control, sampler_for, seed_for
from harness.space.parse import space_from_config


def choice(name: str, options: dict[str, Any] | None = None, **given: Any) -> tuple[optuna.samplers.BaseSampler, str]:
    usual = {"seed": 1, "space_flat": True, "trials_so_far": 0, "objectives": 3, "torch": False}
    return sampler_for(name, options or {}, **(usual | given))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "sampler tpe: torch or SciPy is not installed (pip install -e '.[gp]' for gp)"),
        ({"torch": True, "space_flat": False}, "sampler tpe: some knobs have conditions"),
        ({"torch": True, "trials_so_far": 250}, "sampler tpe: 250 trials"),
        ({"torch": True, "ask_share": 0.031}, "sampler tpe: a proposal of gp took 3.1% of a trial, above 2%"),
    ],
)
def test_auto_says_why_not_gp(given: dict[str, Any], why: str) -> None:
    sampler, line = choice("auto", **given)
    assert isinstance(sampler, optuna.samplers.TPESampler) and line.startswith(why)


@pytest.mark.skipif(not has_torch(), reason="torch and SciPy are not installed")
def test_auto_takes_gp_and_gp_proposes() -> None:
    sampler, line = choice("auto", torch=True, trials_so_far=249)
    assert line == "sampler gp: torch is installed, the space is flat, fewer than 250 trials"
    space = space_from_config({"cache_gb": {"type": "float", "low": 1, "high": 9}}, {})
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(11):
        gb = space.suggest(trial := study.ask())["cache_gb"]
        study.tell(trial, [gb, gb])
    assert len(study.trials) == 11


@pytest.mark.parametrize("name", ["tpe", "TPESampler", "nsgaii", "NSGAIIISampler", "random", "qmc"])
def test_any_sampler_by_its_name(name: str) -> None:
    sampler, why = choice(name, space_flat=False)
    assert type(sampler).__name__.lower().removesuffix("sampler") == name.lower().removesuffix("sampler")
    assert why.endswith("by name")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nsgai", {}, "sampler.name=nsgai is unknown; did you mean nsgaii"),
        ("cmaes", {}, "supports a single objective, this study has 3; use auto"),
        ("GridSampler", {}, "does not fit: it enumerates all combinations"),
        ("gp", {}, r"needs torch and SciPy; pip install -e '.\[gp\]'"),
        ("auto", {"gamma": 1}, "needs a sampler by name"),
        ("tpe", {"n_startup": 3}, "n_startup is not an option of tpe; did you mean n_startup_trials"),
        ("tpe", {"n_startup_trials": "ten"}, "n_startup_trials=ten is not of type int"),
        ("tpe", {"n_ei_candidates": 0}, "n_ei_candidates=0 is below 1"),
        ("tpe", {"constraints_func": "f"}, "constraints_func is not an option"),
        ("tpe", {"seed": 3}, "set study.seed"),
        ("nsgaii", {"population_size": 1}, "sampler.name=nsgaii rejects its options"),
    ],
)
def test_an_impossible_choice_is_rejected_in_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as e:
        choice(name, options)
    assert "\n" not in str(e.value)


def test_seeds_are_fixed_and_differ_after_a_resume() -> None:
    assert seed_for(0, 5) == seed_for(0, 5)
    assert len({seed_for(study, count) for study in range(3) for count in range(50)}) == 150
    assert [n for n in range(25) if is_random_control(n, 10)] == [10, 20]
    assert not any(is_random_control(n, 0) for n in range(25))
