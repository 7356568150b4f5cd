"""Manifest: what all rows of a study share, as `manifest.json` in its folder.

Rows of another model, evaluation texts, space, engine, machine or seed cannot be compared. A study therefore does not resume
with one of these changed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from engine.checkpoint.fingerprint import another
from engine.system.shipped import HERE, ROOT, portable_path
from engine.system.strict_json import from_json, to_json
from harness import ResultsError
from harness.results.columns import SCHEMA_VERSION
from harness.results.files import write_json, write_text

from .study import Study

JUDGE = "judge.yaml"  # the evaluation texts in use, beside the rows


def settle(study: Study, command: str) -> None:
    """Write the manifest of a new study, or compare an existing one. Raises `ResultsError` for another identity.

    command: the command that resumes the study, for reports.
    """
    path = study.folder / "manifest.json"
    identity = study.identity()
    if path.exists():
        try:
            manifest = from_json(path.read_text())
            old, version = manifest["identity"], manifest.get("version", 1)
        except (ValueError, KeyError) as e:
            raise ResultsError(f"{path} is damaged; restore it, or start another study with study.name=OTHER") from e
        if version != SCHEMA_VERSION:
            raise ResultsError(
                f"{study.folder} has rows of schema version {version}, and this search writes version {SCHEMA_VERSION}; "
                "start another study with study.name=OTHER (python -m harness.report still reads the old one)"
            )
        found = changes(old, from_json(to_json(identity)))
        if found:
            raise ResultsError(
                f"{study.folder} holds another study: {'; '.join(found)}; undo that, or start another with study.name=OTHER"
            )
    elif any((study.folder / "trials").glob("*.parquet")) or (study.folder / "trials.parquet").exists():
        raise ResultsError(f"{study.folder} has trials but no manifest.json; restore it, or choose study.name=OTHER")
    texts = [dataclasses.asdict(text) for text in study.judge.texts]
    write_text(study.folder / JUDGE, yaml.safe_dump(texts, allow_unicode=True, sort_keys=False))
    ran = {"model": study.model, "checkpoint": portable_path(study.checkpoint), **study.computes_on}
    if study.device_profile:
        ran["device_profile"] = study.device_profile
    derived = {} if study.automatic is None else {"derived": portable(study.automatic.as_dict())}
    config = portable(dict(study.config))
    whole = {"version": SCHEMA_VERSION, "identity": identity, **ran, **derived, "command": command, "config": config}
    write_json(path, whole)


def portable(config: Any) -> Any:
    """The configuration with `HERE` for this checkout in its paths, as in the YAML files."""
    if isinstance(config, dict):
        return {key: portable(value) for key, value in config.items()}
    return config.replace(f"{ROOT}/", f"{HERE}/") if isinstance(config, str) and config.startswith(f"{ROOT}/") else config


def changes(old: Any, new: Any, name: str = "") -> list[str]:
    """`name was A and is now B` for every leaf that differs; a list counts as a leaf."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        reason = f" ({another(old, new)})" if name == "model" else ""
        return [] if old == new else [f"{name} was {_show(old)} and is now {_show(new)}{reason}"]
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k) or (k in old) != (k in new)]
    below = (changes(old.get(k), new.get(k), k if name in ("", "space") else f"{name}.{k}") for k in keys)
    return [line for lines in below for line in lines]


def _show(value: Any) -> str:
    return "not set" if value is None else str(value)
