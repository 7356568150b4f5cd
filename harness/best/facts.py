"""Facts of a study for its commands and setting files, from its manifest and the files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.system.shipped import ROOT, located, portable_path
from engine.system.strict_json import from_json

MODULE = re.compile(r"[\w.]+(:\w+)?")  # an engine in Python, as rows name it


@dataclass(frozen=True)
class Facts:
    """The model's folder as a portable path (None if unknown), the engine, the protocol, the search's command, and whether
    the checkpoint's own code may run."""

    model: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)  # module, command; empty if unknown
    protocol: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None  # that resumes the study
    confirm_share: float = 0.0
    trust_code: bool = False

    def foreign(self, row: Mapping[str, Any] | None = None) -> dict[str, str]:
        """{command} or {module} of an engine of another maker; empty for this project's. Without a manifest, `row` names the
        engine."""
        if self.engine:
            name = self.engine["command"] or self.engine["module"]
            return {} if name == "engine" else {"command" if self.engine["command"] else "module": str(name)}
        name = None if row is None else row.get("engine")
        if not isinstance(name, str) or name == "engine":
            return {}
        return {"module" if MODULE.fullmatch(name) else "command": name}


def facts_of(folder: Path) -> Facts:
    """The facts in a study's manifest; none without one."""
    try:
        manifest = from_json((folder / "manifest.json").read_text())
        config = manifest["config"]
        return Facts(
            manifest.get("checkpoint") or _model(folder, str(config["model"]["path"])), config["engine"], config["protocol"],
            manifest.get("command"), config["confirm"]["share"], bool(config["model"].get("trust_code")),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return Facts()


def _model(folder: Path, given: str) -> str:
    """The model's path in a configuration. A relative one starts from the folder in which the search ran, which an older
    manifest does not have: the current folder, that of the results, or the checkout."""
    path = located(given)
    places = [place / path for place in (Path.cwd(), folder.absolute().parent.parent, ROOT)]
    found = path if path.is_absolute() else next((place for place in places if place.exists()), None)
    return given if found is None else portable_path(found)
