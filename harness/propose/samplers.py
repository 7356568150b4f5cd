"""Samplers: the choice of Optuna's sampler for the next trial, and the reason for it.

`auto` follows measurements (`python -m harness.bench samplers`). With ordered choices as integers and with anchors, Optuna's
GP sampler reaches in 100 trials what TPE reaches in 200. A proposal of GP costs 1.7 s of one core at 10 trials and 3 s at
100, so GP suits trials of minutes. It draws conditional knobs at random, and needs torch and SciPy (the extra `gp`).
Otherwise `auto` takes TPE with the same encoding, whose proposals cost 0.1 s at 100 trials and 0.5 s at 3,000.

The baseline is plain TPE: every list a category, no anchors. TPE with integers, five anchors and a tenth of the trials at
random gains, in the share of the best hypervolume, 0.04 +- 0.01 at 25 and 100 trials and 0.04 +- 0.02 at 50 (42 pairs of
searches: two fake engines, 4 and 10 % noise, two and three objectives). At 200 trials no gain is proven (-0.03 +- 0.04, 12
pairs). Three variants of it do not differ beyond noise: a joint model of the knobs for the first 50 trials (-0.02 +- 0.02 at
100, 16 pairs), three anchors instead of five (0.01 +- 0.02 at 100, 26 pairs), no random trials (0.02 +- 0.02, 10 pairs). All
other samplers are available by name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from engine.errors import did_you_mean, first_line
from harness import ConfigError

GP_BELOW = 250  # trials; beyond, a proposal of GP takes many seconds and TPE has caught up
ASK_SHARE = 0.02  # largest duration of a proposal, as a share of a trial
CLASSES: dict[str, type[BaseSampler]] = {
    name.removesuffix("Sampler").lower(): getattr(optuna.samplers, name)
    for name in optuna.samplers.__all__
    if name.endswith("Sampler") and not name.startswith("Base")
}
CANNOT = {
    "grid": "enumerates all combinations, too many for any budget",
    "bruteforce": "enumerates all combinations, too many for any budget, and float ranges without end",
    "partialfixed": "only wraps another sampler; fix knobs with search_space.KNOB=VALUE and name that sampler",
}
EXTRA = "pip install -e '.[gp]'"
PLAIN = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,), "None": (type(None),)}


def sampler_for(
    name: str,
    options: Mapping[str, Any],
    *,
    seed: int,
    space_flat: bool,
    trials_so_far: int,
    objectives: int,
    torch: bool,
    ask_share: float = 0.0,
    shared: bool = False,
) -> tuple[BaseSampler, str]:
    """The sampler for the next trial, and one line with its name and the reason.

    torch: the result of `has_torch`. ask_share: largest duration of a proposal so far, as a share of a trial; above
    `ASK_SHARE`, auto takes TPE. shared: whether other machines propose at the same time. Raises `ConfigError` for an unknown
    name or option, and for a sampler that does not fit.
    """
    key = name.lower().removesuffix("sampler")
    if key == "auto":
        if options:
            raise ConfigError(f"sampler.options.{next(iter(options))} needs a sampler by name; give sampler.name, e.g. tpe")
        key, why = _auto(space_flat, trials_so_far, torch, ask_share)
    else:
        _check(name, key, objectives, torch)
        why = "by name" + ("" if key != "gp" or space_flat else "; it draws conditional knobs at random")
    given = {**_defaults(key, shared), **_checked(key, options), "seed": seed}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = CLASSES[key](**given)
    except (ValueError, TypeError, ImportError) as e:
        raise ConfigError(f"sampler.name={name} rejects its options ({first_line(e)}); change sampler.options") from e
    if key == "gp":
        _one_thread()
    return sampler, f"sampler {key}: {why}"


def has_torch() -> bool:
    """Whether torch and SciPy are installed, which the GP sampler needs."""
    return all(importlib.util.find_spec(module) for module in ("torch", "scipy"))


def seed_for(study_seed: int, count: int) -> int:
    """The sampler's seed after `count` draws. It depends on nothing else, so a resume does not repeat a draw."""
    return int.from_bytes(hashlib.sha256(f"{study_seed}/{count}".encode()).digest()[:4], "big")


def is_random_control(number: int, every: int) -> bool:
    """Whether trial `number` (from 1) is drawn at random, as a control for the sampler's gain."""
    return every > 0 and number > 0 and number % every == 0


def _auto(space_flat: bool, trials_so_far: int, torch: bool, ask_share: float) -> tuple[str, str]:
    if not torch:
        return "tpe", f"torch or SciPy is not installed ({EXTRA} for gp)"
    if not space_flat:
        return "tpe", "some knobs have conditions; gp would draw them at random"
    if trials_so_far >= GP_BELOW:
        return "tpe", f"{trials_so_far} trials; from {GP_BELOW} on, a proposal of gp takes too long"
    if ask_share > ASK_SHARE:
        return "tpe", f"a proposal of gp took {ask_share:.1%} of a trial, above {ASK_SHARE:.0%}"
    return "gp", f"torch is installed, the space is flat, fewer than {GP_BELOW} trials"


def _check(name: str, key: str, objectives: int, torch: bool) -> None:
    if key not in CLASSES:
        raise ConfigError(
            f"sampler.name={name} is unknown; {did_you_mean(key, ['auto', *sorted(set(CLASSES) - set(CANNOT))])}"
        )
    if key in CANNOT:
        raise ConfigError(f"sampler.name={name} does not fit: it {CANNOT[key]}; use auto")
    if key == "cmaes" and objectives > 1:
        raise ConfigError(f"sampler.name={name} supports a single objective, this study has {objectives}; use auto")
    if key == "gp" and not torch:
        raise ConfigError(f"sampler.name={name} needs torch and SciPy; {EXTRA}, or use auto")


def _defaults(key: str, shared: bool) -> dict[str, Any]:
    if key == "tpe":
        return {"constant_liar": shared}  # avoids running trials; costs a storage query per knob
    if key in ("gp", "qmc"):
        return {"warn_independent_sampling": False}
    return {}


def _checked(key: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, checked against the signature of the sampler. Only types that YAML can express are accepted."""
    kinds = {
        p.name: str(p.annotation).split(" | ")
        for p in inspect.signature(CLASSES[key]).parameters.values()
        if p.name != "seed" and set(str(p.annotation).split(" | ")) <= set(PLAIN)
    }
    for option, value in options.items():
        where = f"sampler.options.{option}"
        if option == "seed":
            raise ConfigError(f"{where}={value}: the sampler's seeds derive from the study's; set study.seed")
        if option not in kinds:
            hint = did_you_mean(str(option), sorted(kinds)) if kinds else "it has no options"
            raise ConfigError(f"{where} is not an option of {key}; {hint}")
        legal = tuple(t for kind in kinds[option] for t in PLAIN[kind])
        if not isinstance(value, legal) or (isinstance(value, bool) and bool not in legal):
            raise ConfigError(f"{where}={value} is not of type {' or '.join(kinds[option])}")
        least = 0 if option == "n_startup_trials" or float in legal else 1
        if isinstance(value, int | float) and not isinstance(value, bool) and not value >= least:
            raise ConfigError(f"{where}={value} is below {least}; raise it")
    return options


def _one_thread() -> None:
    """Limit torch to one thread: GP's matrices are small, and torch's threads compete with BLAS's."""
    import torch

    torch.set_num_threads(1)
