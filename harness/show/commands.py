"""Commands for a shell: use a measured setting, or continue a study with more confirmation."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import Knobs
from engine.cli.options import option_of
from engine.effective import effective
from engine.system.shipped import HERE, ROOT
from harness.study.manifest import JUDGE

PROMPT = "The water wheel"


def use(folder: Path, row: Mapping[str, Any]) -> str:
    """The command that uses the setting of a row or point of the study in `folder`.

    It is the engine's `generate`, or the user's engine with the study's request. `ssd_gbps`, a limit for the search, is left
    out. For a row of an older version with a knob that no longer exists, a line says so.
    """
    if isinstance(gone := row.get("removed_knobs"), str):
        return f"(this version cannot run it: {gone} was removed)"
    study, knobs = _study(folder), setting_of(row)
    model = study.get("model") or "DIR"
    judge = os.path.relpath(folder / JUDGE)  # relative, because no shell expands `~` inside JSON or code
    engine = study.get("engine") or {"module": row.get("engine") or "engine", "command": None}
    if engine["command"]:
        request = {"checkpoint": model, "judge": judge, "knobs": knobs.as_dict(), "protocol": study["protocol"]}
        return f"echo {shlex.quote(json.dumps(request))} | {engine['command']}"
    if engine["module"] != "engine":
        module, _, name = engine["module"].partition(":")
        made = ", ".join(f"{n}={getattr(knobs, n)!r}" for n in knobs.set_names())
        load = f"{module}{'.' + name if name else ''}.load({model!r}, Knobs({made}))"
        code = f"import {module}; from engine import Judge, Knobs; print({load}.measure(Judge.load({judge!r})))"
        return f"python -c {shlex.quote(code)}"
    words = ["python -m engine generate --model", shell_path(Path(model)) if study.get("model") else model]
    return " ".join([*words, *([text] if (text := options(knobs)) else []), "--prompt", shlex.quote(PROMPT)])


def confirm_more(folder: Path) -> str | None:
    """The command that resumes a study with more runs for confirmation; None without a command in its manifest."""
    study = _study(folder)
    if not study.get("command"):
        return None
    return f"{study['command']} confirm.share={2 * study['confirm_share'] or 0.5:g}"


def setting_of(row: Mapping[str, Any]) -> Knobs:
    """The knobs of a row or point that have an effect, except `ssd_gbps`."""
    values = {n: None if row[n] != row[n] else row[n] for n in Knobs.names() if n != "ssd_gbps"}
    live = {n: v.item() if hasattr(v, "item") else v for n, v in effective(values).items() if v is not None}
    return Knobs.from_mapping(live)


def options(knobs: Knobs) -> str:
    """The knobs off their defaults, as options of `python -m engine`."""
    parts = []
    for name in knobs.set_names():
        option, value = option_of(name).removeprefix("--"), getattr(knobs, name)
        given = shell_path(Path(value)) if name == "bits_plan" else str(value)
        parts.append((f"--{option}" if value else f"--no-{option}") if isinstance(value, bool) else f"--{option} {given}")
    return " ".join(parts)


def shell_path(path: Path) -> str:
    """A path, quoted for a shell: relative inside the current folder, with `~` inside the home folder, else absolute."""
    path = path.expanduser().absolute()
    for base, prefix in ((Path.cwd(), ""), (_home(), "~/")):
        if base is not None and path.is_relative_to(base):
            return prefix + shlex.quote(str(path.relative_to(base)))
    return shlex.quote(str(path))


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # the account has no home folder
        return None


def _study(folder: Path) -> dict[str, Any]:
    """Model folder, engine, protocol and command of a study, from its manifest; empty without one."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        config = manifest["config"]
        model = config["model"]["path"].replace(HERE, str(ROOT))
        return {
            "model": str(Path(model).expanduser()), "engine": config["engine"], "protocol": config["protocol"],
            "command": manifest.get("command"), "confirm_share": config["confirm"]["share"],
        }  # fmt: skip
    except (OSError, ValueError, KeyError):
        return {}
