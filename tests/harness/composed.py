"""Hydra without its repeated work: what a process composes again for each study, it reads once.

Hydra parses the same files and the same overrides for every study, and copies all registered schemas twice. Results are
those of Hydra: a parsed text is kept by its content, and copied.
"""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

PARSE = OverridesParser.parse_rule
_files: dict[str, bytes] = {}
_rules: dict[str, Override] = {}


def compose_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of a test, Hydra in this process keeps what it has parsed."""
    monkeypatch.setattr("omegaconf.omegaconf.yaml", SimpleNamespace(**{**vars(yaml), "load": _load}))
    monkeypatch.setattr(OverridesParser, "parse_rule", _parse_rule)
    # The copy of a repository gets sources of its own in any case.
    monkeypatch.setattr("hydra._internal.config_repository.copy", SimpleNamespace(deepcopy=copy.copy))


def _load(stream: Any, Loader: Any) -> Any:
    text = stream if isinstance(stream, str) else stream.read()
    if text not in _files:
        if text is not stream:
            stream.seek(0)
        _files[text] = pickle.dumps(yaml.load(stream, Loader=Loader))
    return pickle.loads(_files[text])


def _parse_rule(self: OverridesParser, s: str, rule_name: str) -> Any:
    if rule_name != "override":
        return PARSE(self, s, rule_name)
    if s not in _rules:
        _rules[s] = PARSE(self, s, rule_name)
    made = copy.copy(_rules[s])
    assert isinstance(made, Override)
    return made
