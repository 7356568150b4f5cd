"""Configuration schema: every key has a meaning, and a file of a search space is registered or refused in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import ConfigError
from harness.schema import FILES, Config, store_file


def keys(part: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key with its meaning."""
    for f in dataclasses.fields(part):
        if dataclasses.is_dataclass(f.default_factory):
            yield from keys(f.default_factory, f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + f.name, f.metadata.get("help", "")


def test_every_key_has_a_short_meaning() -> None:
    meanings = dict(keys(Config))
    assert {"rounds", "guards.wait_s", "sampler.options", "knobs"} <= set(meanings)
    assert [name for name, text in meanings.items() if not 5 <= len(text) <= 110] == []


def test_a_file_of_a_space_is_named_after_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my-space.yaml"
    path.write_text("cache_gb: 1.0\n")
    name = store_file("search_space", path)
    assert name.endswith("my_space_yaml") and FILES[f"search_space={name}"] == f"search_space={path}"


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not valid YAML .*; fix it"), ("- 3", "is not a search space"), (None, "cannot be read")],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "space.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        store_file("search_space", path)
