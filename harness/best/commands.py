"""Commands for a shell: use a measured setting, or continue a study with more confirmation."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import Knobs
from engine.effective import effective
from engine.system.shipped import home, located
from engine.system.strict_json import to_json
from harness.decisions.recommend import Choice
from harness.results.rows import read_trials
from harness.study.manifest import JUDGE

from .facts import Facts, facts_of

PROMPT = "The water wheel"
VERBS = {"serve": "", "chat": "", "generate": f" --prompt {shlex.quote(PROMPT)}", "measure": ""}


def commands_of(folder: Path, what: Choice | int | str, point: Mapping[str, Any] | None = None) -> dict[str, str]:
    """The commands that use a setting of the study in `folder`, by their name: serve, chat, generate and measure, or `run`
    for an engine of another maker. Empty for a setting that this version cannot run (`cannot_run`).

    what: a recommended setting, a trial's number, or the name of a pick, such as `default`. point: the trial's row, if it is
    at hand; without a manifest it names the engine, and an engine of another maker needs its knobs.
    """
    facts = facts_of(folder)
    if point is not None and cannot_run(point):
        return {}
    if foreign := facts.foreign(point):
        row = _row(folder, what) if point is None else point
        return {} if row is None or cannot_run(row) else {"run": _foreign(folder, facts, foreign, setting_of(row))}
    pick = what.name if isinstance(what, Choice) else what
    chosen = f"--from {shell_path(folder)} " + (f"--trial {pick}" if isinstance(pick, int) else f"--pick {pick}")
    model = ("" if facts.model else " --model DIR") + (" --trust-code" if facts.trust_code else "")
    return {verb: f"python -m engine {verb} {chosen}{model}{more}" for verb, more in VERBS.items()}


def cannot_run(row: Mapping[str, Any]) -> str | None:
    """Why this version cannot run a row's setting: a knob that was removed since. None if it can."""
    gone = row.get("removed_knobs")
    return f"this version cannot run it: {gone} was removed" if isinstance(gone, str) else None


def confirm_more(folder: Path) -> str | None:
    """The command that resumes a study with more runs for confirmation; None without a command in its manifest."""
    facts = facts_of(folder)
    return f"{facts.command} confirm.share={2 * facts.confirm_share or 0.5:g}" if facts.command else None


def setting_of(row: Mapping[str, Any], *, search: bool = False) -> Knobs:
    """The knobs of a row or point that have an effect. `search`: including `ssd_gbps`, a limit for measuring alone."""
    values = {n: None if row[n] != row[n] else row[n] for n in Knobs.names() if search or n != "ssd_gbps"}
    live = {n: v.item() if hasattr(v, "item") else v for n, v in effective(values).items() if v is not None}
    return Knobs.from_mapping(live)


def shell_path(path: Path) -> str:
    """A path, quoted for a shell: relative inside the current folder, with `~` inside the home folder, else absolute."""
    path = path.absolute()
    for place, prefix in ((Path.cwd(), ""), (home(), "~/")):
        if place is not None and path.is_relative_to(place):
            return prefix + shlex.quote(str(path.relative_to(place)))
    return shlex.quote(str(path))


def _row(folder: Path, what: Choice | int | str) -> Mapping[str, Any] | None:
    trial = what.trial if isinstance(what, Choice) else what
    df = read_trials(folder)
    rows = df[df["trial"] == trial]
    return None if rows.empty else rows.iloc[0]


def _foreign(folder: Path, facts: Facts, foreign: Mapping[str, str], knobs: Knobs) -> str:
    """The command that runs a setting with an engine of another maker."""
    model = str(located(facts.model)) if facts.model else "DIR"
    judge = os.path.relpath(folder / JUDGE)  # relative, because no shell expands `~` inside JSON or code
    if "command" in foreign:
        request = {"checkpoint": model, "judge": judge, "knobs": knobs.as_dict(), "protocol": facts.protocol}
        return f"echo {shlex.quote(to_json(request))} | {foreign['command']}"
    module, _, name = foreign["module"].partition(":")
    made = ", ".join(f"{n}={getattr(knobs, n)!r}" for n in knobs.set_names())
    load = f"{module}{'.' + name if name else ''}.load({model!r}, Knobs({made}))"
    code = f"import {module}; from engine import Judge, Knobs; print({load}.measure(Judge.load({judge!r})))"
    return f"python -c {shlex.quote(code)}"
