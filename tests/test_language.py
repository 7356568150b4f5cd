"""Language of code and documents: words that the glossary replaces do not come back.

`docs/glossary.md` defines the terms of the project. This test catches words that were once used for them, and a few habits
of style (personification, literary words). It reads every line of source, configuration and documentation.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("engine", "harness", "experiments", "search_spaces", "docs", "tests", ".github")
FILES = ("README.md", "CONTRIBUTING.md", "results/README.md", "Makefile", "pyproject.toml")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml"}

# Expression -> what to write.
REPLACED = {
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bfore(told|tell\w*|sees?|seen|saw)\b": "predict",
    r"(?<!\")\bnobody\b|\bno one\b": "name the thing: no thread, no expert",
    r"(?<!until )\bnights?\b|\bNight\b": "session, or unattended run",
    r"\bgone on with\b|\bgoes on where\b": "resumed",
    r"\bseldom\b": "rarely",
    r"\bin vain\b": "rejected, or without use",
    r"\bvoid(ed)? (pass|passes|layers?)\b": "rejected pass",
    r"\bput(s|ting)? together\b": "combine, assemble",
    r"\b(is|are|was) to be had\b|\bis had\b": "is available",
    r"(?<!04-)\b[Aa]rms?\b(?! ?64)": "origin of a proposal, or contender in a benchmark",
    r"\bseams?\b": "engine adapter, or interface",
    r"\bbelieve[sd]?\b|\bbeliefs?\b": "posterior, estimate",
    r"\bthe books\b|\bits books\b": "statistics, bookkeeping",
    r"\bthe judge\b|\ba judge\b|\bjudges\b": "evaluation texts (the class is `Judge`)",
    r"\bledger\b": "rows, journal",
    r"\breckon\w*\b|\bhitherto\b|\bthereof\b|\bwhereupon\b|\bbeforehand\b": "plain words",
}
EXCEPT = ("tests/test_language.py", "docs/glossary.md", "CHANGELOG.md")


@functools.cache
def texts() -> dict[str, str]:
    """Path -> text of everything that is read by people."""
    paths = [p for name in FOLDERS for p in sorted((ROOT / name).rglob("*")) if p.suffix in SUFFIXES]
    paths += [ROOT / name for name in FILES if (ROOT / name).exists()]
    named = {str(p.relative_to(ROOT)): p for p in paths}
    return {name: p.read_text(encoding="utf-8") for name, p in named.items() if name not in EXCEPT}


@pytest.mark.parametrize("expression", REPLACED)
def test_replaced_words_stay_replaced(expression: str) -> None:
    pattern = re.compile(expression)
    hits = [(name, text) for name, text in texts().items() if pattern.search(text)]
    lines = [(name, i, line.strip()) for name, text in hits for i, line in enumerate(text.splitlines(), 1)]
    found = [f"{name}:{i}: {line[:120]}" for name, i, line in lines if pattern.search(line)]
    assert not found, f"write {REPLACED[expression]!r} instead:\n" + "\n".join(found)
