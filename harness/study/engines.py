"""The seam to the engine, and how to plug in one of your own.

A study names what measures: `engine.module=MODULE`, or `MODULE:ATTRIBUTE` for a class or an object in it. It needs
`load(checkpoint, knobs)`, which returns something with `measure(judge)`, which returns a `Measurement`. This is all:

    # my_engine.py, anywhere on PYTHONPATH:  python -m harness.search study=demo engine.module=my_engine:Mine
    from engine import Measurement

    class Mine:
        def __init__(self, knobs):
            self.knobs = knobs

        @classmethod
        def load(cls, checkpoint, knobs):
            return cls(knobs)

        def measure(self, judge):
            gb = 10.0 if self.knobs.cache_gb is None else self.knobs.cache_gb
            return Measurement(decode_tok_s=5 + gb, peak_memory_gb=1 + gb, perplexity=4.0)

What more it may have, each by itself:

- `measure(judge, protocol, keep_going)`: takes the measuring protocol (`engine.Protocol`), and calls
  `keep_going(token_ms)` after each timed token with the milliseconds of all so far; at False it ends with what it has, and
  says `ended_early=True`. Only with `keep_going` a run can be stopped early, and a hang be told from slowness.
- `continuation_tokens(judge)` of what `load` returned: how many tokens there are to time if the protocol does not say.
- `footprint(checkpoint, knobs)` beside `load`: an object with `architecture`, `fingerprint`, `one_token_gb`,
  `all_experts_gb` and `predicted_peak_gb`, so that what does not fit is foreseen. Without it nothing is.
- `ceiling_tok_s(checkpoint, knobs, judge, protocol)` beside `load`: tokens/s that `decode_tok_s` is sure not to exceed, or
  None, so that what is sure to be too slow is not run. Without it nothing is; a command has none.
- errors: `KnobError` for a setting that is not possible, `CheckpointError` for a checkpoint that is not, `MemoryError`.

Or a command, `engine.command="./measure --fast"`, in any language. It is started without a shell, once a run, with one JSON
object on its input: {"checkpoint", "judge", "knobs", "protocol", "quality", "beat", ...}. The last line of its output, or
all of it, is a JSON object of figures, named and typed as the fields of `engine.Measurement`: at least decode_tok_s,
peak_memory_gb and perplexity (null if `protocol.score` is false). An object {"error", "reason"} tells of a failure; what it
writes to stderr goes to the run's log. It may touch the file `beat` as a sign of life. Before the first run, and once for
each setting, the input is {"footprint": true, "checkpoint", "knobs"}; the answer has any of footprint's five names, or is
{} if the command foresees nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import HeadraceError, Judge, Knobs, Protocol
from engine.errors import first_line
from harness import ConfigError
from harness.machine.json_command import CommandError, run_command, split_command

FOOTPRINT_TIMEOUT_S = 60
MOST_BYTES = 64_000_000  # of an answer with the time of each token
GUIDE = "harness/study/engines.py"


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


def engine_from_config(config: Mapping[str, Any]) -> PythonEngine | CommandEngine:
    """The engine of the configuration's group `engine`. Raises `ConfigError`."""
    if config["command"] is None:
        return engine_at(config["module"])
    if config["module"] != "engine":
        raise ConfigError(f"engine.command and engine.module={config['module']} are two engines; give one of them")
    return CommandEngine(config["command"])


def engine_at(name: str) -> PythonEngine:
    """The engine at `MODULE` or `MODULE:ATTRIBUTE`. Raises `ConfigError` if there is none."""
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
    return PythonEngine(found.load, getattr(found, "footprint", no_footprint), getattr(found, "ceiling_tok_s", no_ceiling))


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
        text = text.strip()
        for part in (text.splitlines()[-1] if text else "", text):
            try:
                found = json.loads(part)
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
        raise HeadraceError(f"{self._name} answered {text[-60:]!r}; print a JSON object as the last line")


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
