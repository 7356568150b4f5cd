"""Setting file: a measured setting as YAML, with model, knobs, machine, figures and commands.

A study writes one for each recommended setting (`harness.best`), and `--config FILE` applies it. The first line has a
checksum of the rest. It tells a file that a study may write again from one that a user has edited.

Knobs of a file that are off stay off in every version; the others are written even at their default, so that a later
default does not change the setting. A simulated limit of the disk is in `search_only`, because it is not for use.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import HeadraceError, KnobError, did_you_mean, first_line
from engine.knobs import BACKENDS, WORDS, Knobs, idle
from engine.measure.measurement import Measurement
from engine.measure.protocol import Protocol
from engine.system.shipped import located
from engine.system.strict_json import refuse_not_finite

FORMAT = 1
MOST_BYTES = 1_000_000  # of a setting file; another file of this size is not read
SEARCH_ONLY = ("ssd_gbps",)  # knobs for measuring alone
WORDLY = ("prefetch", "io_mode", "bits_plan")  # knobs whose value is text
PARTS = {"value", "low", "high", "noise"}  # of a measured figure
HEAD = "# Headrace setting file, checksum "
ADVICE = "# A study writes the files of its folder best/ again, except those that were edited."
ORDER = (
    *("name", "rule", "study", "trial", "confirmed", "runs", "model", "engine", "knobs", "search_only"),
    *("machine", "versions", "protocol", "eval_texts", "measured", "commands"),
)
TEXTS = ("name", "rule", "study")
GROUPS = {"model": ("path", "name", "fingerprint", "architecture"), "eval_texts": ("name", "file", "fingerprint")}
MAPPINGS = (*GROUPS, "engine", "knobs", "search_only", "machine", "versions", "protocol", "measured", "commands")


@dataclass(frozen=True)
class Setting:
    """A setting with its origin, as in a setting file.

    `knobs` and `search_only` have the values that are set, by name. `measured` has {value, low, high, noise} of each figure:
    the estimate, the ends of its 95 % interval, and the half-width of the 95 % interval of one further run, as a share.
    `engine` is empty for this project's engine, else {module} or {command}. `place` is the folder that relative paths start
    from, and `source` names the file in messages.
    """

    name: str
    knobs: Mapping[str, Any]
    rule: str = ""
    study: str = ""
    trial: int | None = None
    confirmed: bool | None = None
    runs: int | None = None  # that the figures come from
    model: Mapping[str, Any] = field(default_factory=dict)  # path, name, fingerprint, architecture
    engine: Mapping[str, Any] = field(default_factory=dict)
    search_only: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    eval_texts: Mapping[str, Any] = field(default_factory=dict)  # name, file, fingerprint
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    place: Path = Path()
    source: str = "the setting"
    edited: bool = False  # after it was written

    @property
    def title(self) -> str:
        """Name, study and trial: `fastest of demo (trial 17)`."""
        of = f" of {self.study}" if self.study else ""
        trial = "" if self.trial is None or self.name == f"trial {self.trial}" else f" (trial {self.trial})"
        return f"{self.name}{of}{trial}"

    def for_use(self, given: Mapping[str, Any] | None = None, *, search: bool = False) -> Knobs:
        """The knobs, with the values of `given` in place of the file's. `search`: including those of `search_only`.

        Raises `KnobError` for a knob that is unknown, removed, out of range or without effect.
        """
        values = {**self.knobs, **(self.search_only if search else {})}
        try:
            own = Knobs.from_mapping({name: self._typed(name, value) for name, value in values.items()})
        except KnobError as e:
            raise KnobError(f"{self.source}: {e}") from e
        if not given:
            return own
        try:
            return dataclasses.replace(own, **given)
        except KnobError as e:
            raise KnobError(f"{e} (the other knobs are those of {self.source})") from e

    def find(self, text: str) -> Path:
        """The path that the file means by `text`: relative ones from the file's folder if they are there, else from the
        current folder."""
        path = located(text)
        beside = Path(os.path.normpath(self.place / path))  # the file's folder need not exist
        return beside if not path.is_absolute() and beside.exists() else path

    def _typed(self, name: str, value: Any) -> Any:
        """A knob's value without two traps of YAML, which has false for `off` and text for `1e-3`, and a path found."""
        if name == "prefetch" and value is False:
            return "off"
        if not isinstance(value, str) or value in WORDS.get(name, {}):
            return value
        if name == "bits_plan":
            return str(self.find(value))
        try:
            return value if name in WORDLY else float(value)
        except ValueError:
            return value

    def to_yaml(self) -> str:
        """The content of the file."""
        content: dict[str, Any] = {"format": FORMAT}
        for name in ORDER:
            if (value := getattr(self, name)) not in (None, "", {}) or name == "knobs":
                content[name] = _plain(value)
        refuse_not_finite(content, f"the setting {self.name}")
        body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        return f"{HEAD}{_checksum(body)}\n{ADVICE}\n{body}"


def knobs_to_write(knobs: Knobs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a setting file's `knobs` and `search_only`: those that are set, and those with an effect that is not
    `off`, even at their default. Knobs of one backend at their default are left out: other machines refuse them."""
    values, set_names = knobs.as_dict(), knobs.set_names()
    without = idle(values)
    off = [
        n for n, value in values.items()
        if (value in (None, 0, "off") or n in BACKENDS) and n not in (*set_names, *WORDS)
    ]  # fmt: skip
    kept = {name: value for name, value in values.items() if name not in without and name not in off}
    words = {name: next((w for w, v in WORDS.get(name, {}).items() if v == value), value) for name, value in kept.items()}
    return ({n: v for n, v in words.items() if n not in SEARCH_ONLY}, {n: v for n, v in words.items() if n in SEARCH_ONLY})


def read_setting(path: str | Path) -> Setting:
    """Read a setting file. Raises `HeadraceError` in one line for a file that is not one, and for an impossible value."""
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise HeadraceError(f"{path} is a folder; give a setting file, or a study with --from {path}")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise HeadraceError(f"{path} is too large for a setting file; give best/NAME.yaml of a study")
        text = content.decode()
    except OSError as e:
        raise HeadraceError(f"{path} cannot be read ({e.strerror}); give best/NAME.yaml of a study") from e
    except UnicodeDecodeError as e:
        raise HeadraceError(f"{path} is not a text file; give best/NAME.yaml of a study") from e
    return parse_setting(text, str(path), path.parent)


def parse_setting(text: str, source: str, place: Path) -> Setting:
    """The setting in a file's text; relative paths in it start from `place`. Raises `HeadraceError` as `read_setting`."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise HeadraceError(f"{source} is not valid YAML ({' '.join(str(e).split())[:200] or first_line(e)}); fix it") from e
    if not isinstance(content, dict) or "format" not in content:
        raise HeadraceError(f"{source} is not a setting file (it has no key format); give best/NAME.yaml of a study")
    version = content.pop("format")
    if isinstance(version, int) and version > FORMAT:
        raise HeadraceError(f"{source} has format {version}, and this version reads up to {FORMAT}; update headrace")
    if version != FORMAT or isinstance(version, bool):
        raise HeadraceError(f"{source} has format={version!r:.40}, which does not exist; write format: {FORMAT}")
    for name in content:
        if name not in ORDER:
            raise HeadraceError(f"{source}: {name} is not a key of a setting file; {did_you_mean(str(name), list(ORDER))}")
    content = {name: value for name, value in content.items() if value is not None}
    if "knobs" not in content:
        raise HeadraceError(f"{source} has no knobs; write knobs: {{}} to keep every expert resident")
    for name, value in content.items():
        kind, what = _kind(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and name != "confirmed"):
            raise HeadraceError(f"{source}: {name}={value!r:.60} is not {what}; give {what}")
        if isinstance(value, dict) and (wrong := next((key for key in value if not isinstance(key, str)), None)) is not None:
            raise HeadraceError(f"{source}: {name} has the key {wrong!r:.60}, which is not text; write NAME: VALUE")
    setting = Setting(**{"name": source, **content}, place=place, source=source, edited=is_edited(text))
    _check(setting)
    return setting


def is_as_written(text: str) -> bool:
    """Whether a file has the checksum that it was written with, so that a study may replace it."""
    head, _, rest = text.partition("\n")
    return head == f"{HEAD}{_checksum(rest.partition(chr(10))[2])}"


def is_edited(text: str) -> bool:
    """Whether a file begins as those that a study writes, and was changed since."""
    return text.startswith(HEAD) and not is_as_written(text)


def _kind(name: str) -> tuple[type, str]:
    if name in MAPPINGS:
        return dict, "a mapping"
    if name in TEXTS:
        return str, "text"
    return (bool, "true or false") if name == "confirmed" else (int, "a whole number")


def _check(setting: Setting) -> None:
    """Raise `HeadraceError` for a value that cannot be used."""
    source = setting.source
    for name in setting.search_only:
        if name not in SEARCH_ONLY:
            raise HeadraceError(f"{source}: search_only has {name}, which is for use; move it to knobs")
    for name in SEARCH_ONLY:
        if name in setting.knobs:
            raise HeadraceError(f"{source}: knobs has {name}, a limit for measuring alone; move it to search_only")
    for group, names in GROUPS.items():
        for name, value in getattr(setting, group).items():
            if name not in names:
                raise HeadraceError(f"{source}: {group}.{name} is not a key; {did_you_mean(str(name), list(names))}")
            if not isinstance(value, str):
                raise HeadraceError(f"{source}: {group}.{name}={value!r:.60} is not text; give text")
    for name, parts in setting.measured.items():
        if name not in Measurement.names():
            hint = did_you_mean(str(name), list(Measurement.names()))
            raise HeadraceError(f"{source}: measured.{name} is not a figure; {hint}")
        numbers = parts.values() if isinstance(parts, dict) and "value" in parts and not parts.keys() - PARTS else [None]
        if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
            raise HeadraceError(f"{source}: measured.{name} needs numbers value, low, high and noise; give them")
    try:
        Protocol.from_mapping(setting.protocol)
    except HeadraceError as e:
        raise HeadraceError(f"{source}: {e}") from e
    if not setting.engine:
        setting.for_use(search=True)


def _plain(value: Any) -> Any:
    """Values for YAML: dictionaries of any mapping, numbers of numpy's."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return value.item() if hasattr(value, "item") else value


def _checksum(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]
