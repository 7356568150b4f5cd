"""Engine adapters: the engine of a study, as a Python module or as a command.

How to write an engine of your own is described in docs/own-engine.md, with complete examples.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import HeadraceError, Judge, Knobs, Protocol
from engine.errors import first_line
from engine.measure.context import longest_context
from engine.system.strict_json import NumberError, from_json
from harness import ConfigError
from harness.machine.json_command import CommandError, run_command, split_command

FOOTPRINT_TIMEOUT_S = 60
MOST_BYTES = 64_000_000  # of an answer with the time of each token
GUIDE = "docs/own-engine.md"


@dataclass(frozen=True)
class Footprint:
    """The predicted memory of a setting, GB; zeros where an engine predicts nothing."""

    architecture: str
    fingerprint: str
    one_token_gb: float = 0.0
    all_experts_gb: float = 0.0
    predicted_peak_gb: float = 0.0


@dataclass(frozen=True)
class PythonEngine:
    """An engine in this process: `load(checkpoint, knobs)`, `footprint(checkpoint, knobs)` and
    `ceiling_tok_s(checkpoint, knobs, judge, protocol)`."""

    load: Callable[[str | Path, Knobs], Any]
    footprint: Callable[[str | Path, Knobs], Any]
    ceiling_tok_s: Callable[[str | Path, Knobs, Judge, Protocol], float | None]


def no_footprint(checkpoint: str | Path, knobs: Knobs | None = None) -> Footprint:
    """The footprint of an engine without one: the checkpoint's path alone identifies the model."""
    path = str(Path(checkpoint).expanduser().absolute())
    return Footprint("unknown", hashlib.sha256(path.encode()).hexdigest()[:16])


def no_ceiling(checkpoint: str | Path, knobs: Knobs, judge: Judge, protocol: Protocol) -> float | None:
    """The speed bound of an engine without one."""
    return None


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether the configuration's group `engine` names this project's engine."""
    return config["command"] is None and config["module"] == "engine"


def engine_from_config(config: Mapping[str, Any], *, trust_code: bool = False) -> PythonEngine | CommandEngine:
    """The engine of the configuration's group `engine`, with the value of `model.trust_code`. Raises `ConfigError`."""
    if config["command"] is None:
        return engine_at(config["module"], trust_code=trust_code)
    if config["module"] != "engine":
        raise ConfigError(f"engine.command and engine.module={config['module']} are two engines; give one of them")
    return CommandEngine(config["command"])


def engine_at(name: str, *, trust_code: bool = False) -> PythonEngine:
    """The engine at `MODULE` or `MODULE:ATTRIBUTE`. With `trust_code`, its functions get that argument. Raises `ConfigError`
    if there is none, or if it cannot run a checkpoint's code."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as e:  # ValueError: an empty name
        raise ConfigError(
            f"engine.module={name} cannot be imported ({first_line(e)}); leave it at engine, or name your module"
        ) from e
    found = getattr(module, attribute, None) if attribute else module
    if found is None:
        raise ConfigError(f"engine.module={name}: {module_name} has no {attribute}; name a class or an object in it")
    if not callable(getattr(found, "load", None)):
        raise ConfigError(f"engine.module={name} has no function load; see {GUIDE} for what an engine needs")
    load: Callable[..., Any] = found.load
    ceiling: Callable[..., Any] = getattr(found, "ceiling_tok_s", no_ceiling)
    if trust_code:
        if not _takes(load, "trust_code"):
            raise ConfigError(
                f"model.trust_code=true has no effect: load of engine.module={name} takes no trust_code; leave it out"
            )
        load = functools.partial(load, trust_code=True)
        if _takes(ceiling, "trust_code"):
            ceiling = functools.partial(ceiling, trust_code=True)
    return PythonEngine(load, getattr(found, "footprint", no_footprint), ceiling)


def _takes(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def for_texts(engine: PythonEngine | CommandEngine, checkpoint: str | Path, judge: Judge) -> PythonEngine | CommandEngine:
    """The engine with a footprint that counts the longest evaluation text, if its footprint takes a `context`."""
    if isinstance(engine, CommandEngine) or not _takes(engine.footprint, "context"):
        return engine
    counted: Any = functools.partial(engine.footprint, context=longest_context(checkpoint, judge))  # type: ignore[call-arg]
    return dataclasses.replace(engine, footprint=counted)


class CommandEngine:
    """An engine behind a command line, which is split as a shell splits it. Raises `ConfigError` if it cannot be split."""

    ceiling_tok_s = staticmethod(no_ceiling)

    def __init__(self, command: str) -> None:
        self.words = split_command("engine.command", command)
        self._footprints: dict[tuple[str, Knobs], Footprint] = {}
        self._predicts = True

    def footprint(self, checkpoint: str | Path, knobs: Knobs) -> Footprint:
        """The command's footprint of a setting. Each setting is requested once; an empty answer ends all requests.

        Raises `HeadraceError` if the command fails or its answer is not a footprint.
        """
        default, key = no_footprint(checkpoint), (str(checkpoint), knobs)
        if not self._predicts:
            return default
        if key not in self._footprints:
            request = {"footprint": True, "checkpoint": str(checkpoint), "knobs": knobs.as_dict()}
            try:
                text = run_command(self.words, request, most_bytes=MOST_BYTES, timeout_s=FOOTPRINT_TIMEOUT_S)
            except CommandError as e:
                raise HeadraceError(f"{self._name}: request for a footprint: {e}; the answer {{}} predicts nothing") from e
            given = self._object(text)
            self._predicts = bool(given)
            for name, value in given.items():
                known = getattr(default, name, None)
                fits = isinstance(value, str) if isinstance(known, str) else _is_size(value)
                if known is None or not fits:
                    raise HeadraceError(f"{self._name}: {name}={value!r:.60} is not part of a footprint; see {GUIDE}")
            self._footprints[key] = Footprint(**{**vars(default), **given})
        return self._footprints[key]

    def measure(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The command's answer to the request of a run. It shares this process's group, so the supervisor can end both.

        Raises `HeadraceError` if the command cannot be started, fails, or does not answer with a JSON object.
        """
        try:
            text = run_command(self.words, request, most_bytes=MOST_BYTES, shared=True)
        except CommandError as e:
            raise HeadraceError(f"{self._name}: {e}") from e
        return self._object(text)

    @property
    def _name(self) -> str:
        return f"engine.command={self.words[0]}"

    def _object(self, text: str) -> dict[str, Any]:
        """The JSON object on the last line, or of the whole output."""
        text, reason = text.strip(), ""
        for part in (text.splitlines()[-1] if text else "", text):
            try:
                found = from_json(part)
            except NumberError as e:
                reason = f" ({e})"
                continue
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
        remedy = "give finite figures, and null for others" if reason else "print a JSON object as the last line"
        raise HeadraceError(f"{self._name} answered {text[-60:]!r}{reason}; {remedy}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
