"""Share: a study as a block of Markdown for an issue or a forum, without paths of home folders, host names or addresses."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from engine.cli.arguments.options import option_of
from harness.best.commands import PROMPT, cannot_run, setting_of

from .facts import identity, repeat, scrubbed, sentences
from .summary import Summary
from .tables import recommended_cells

SHOWN = ("machine", "memory limit", "read limit", "model", "model fingerprint", "evaluation texts", "versions")


def markdown(summary: Summary) -> str:
    """The study's result: sentences, the recommended settings beside default and reference, commands, and what ran where."""
    parts = [f"### Headrace: {_plain(summary.name)}", " ".join(_plain(s) for s in sentences(summary))]
    if len(summary.front):
        table = recommended_cells(summary)
        parts.append(_table(table.headers, [[cell.text for cell in row] for row in table.rows]))
        parts += [
            f"To use {_plain(', '.join(names))}:\n\n{_block(_options(summary, trial))}"
            for trial, names in summary.used.items()
        ]
    facts = [f"- {name}: {_plain(value)}" for name, value in identity(summary) if name in SHOWN]
    if facts:
        parts.append("\n".join(facts))
    parts += [
        f"To {_plain(what)}:\n\n{_block(text)}" for what, text in repeat(summary)[:1] if summary.manifest.get("command")
    ]
    return "\n\n".join(parts) + "\n"


def _options(summary: Summary, trial: int) -> str:
    """The command for a reader without the study's folder: the knobs as options; or the reason why there is none."""
    point = summary.standings.loc[trial]
    if why := cannot_run(point):
        return f"({why})"
    knobs, words = setting_of(point), ["python -m engine generate --model DIR"]
    for name in knobs.set_names():
        option, value = option_of(name).removeprefix("--"), getattr(knobs, name)
        on_off = isinstance(value, bool)
        words.append((f"--{option}" if value else f"--no-{option}") if on_off else f"--{option} {shlex.quote(str(value))}")
    return " ".join([*words, f"--prompt {shlex.quote(PROMPT)}"])


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] + ["---:"] * (len(headers) - 2) + ["---"], *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: on one line, without marks, links or HTML."""
    words = " ".join(scrubbed(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|#!]|(?<!\w)_|_(?!\w))", r"\\\1", words).replace("@", "&#64;")


def _block(command: str) -> str:
    """A fenced block that no backticks in the command end."""
    text = scrubbed(command)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
