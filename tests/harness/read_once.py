"""Libraries without their repeated work: what each study of a process reads again, the tests' process reads once.

For every study Hydra parses the same files and overrides, and copies all registered schemas twice; Optuna imports its list
of migrations twice. Results are those of the libraries: what was read is kept by its content, and copied.
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
from optuna.storages._rdb.storage import _VersionManager

PARSE, SCRIPT = OverridesParser.parse_rule, _VersionManager._create_alembic_script
_files: dict[str, bytes] = {}
_overrides: dict[str, Override] = {}
_scripts: list[Any] = []


def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until `monkeypatch` ends, Hydra and Optuna in this process keep what they have read."""
    monkeypatch.setattr("omegaconf.omegaconf.yaml", SimpleNamespace(**{**vars(yaml), "load": _load}))
    monkeypatch.setattr(OverridesParser, "parse_rule", _parse_rule)
    # The copy of a repository gets sources of its own in any case.
    monkeypatch.setattr("hydra._internal.config_repository.copy", SimpleNamespace(deepcopy=copy.copy))
    monkeypatch.setattr(_VersionManager, "_create_alembic_script", _script)


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
    if s not in _overrides:
        _overrides[s] = PARSE(self, s, rule_name)
    return copy.copy(_overrides[s])


def _script(self: _VersionManager) -> Any:
    if not _scripts:
        _scripts.append(SCRIPT(self))
    return _scripts[0]
