"""Tests of names that revisions have in different places."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine.bench.beside.child import revision
from engine.bench.decoding.forced_routing import ForcedRouting


def test_the_first_place_that_exists() -> None:
    assert revision.find(revision.FORCED_ROUTING) is ForcedRouting
    older = (("engine.nowhere", "A"), ("engine.bench.nowhere.at_all", "B"), ("engine.errors", "C"))
    assert revision.find((*older, *revision.FORCED_ROUTING)) is ForcedRouting
    with pytest.raises(LookupError, match=r"none of engine.nowhere.A, engine.bench.nowhere.at_all.B, engine.errors.C"):
        revision.find(older)


def test_a_module_that_lacks_an_import_of_its_own_is_no_missing_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(name: str) -> None:
        raise ModuleNotFoundError(name="rich")

    monkeypatch.setattr(revision, "import_module", importing)
    with pytest.raises(ModuleNotFoundError):
        revision.find(revision.READ_TRACE)


def test_parts_by_their_names_in_the_revisions() -> None:
    owner = SimpleNamespace(state=None, _run=3, cache=SimpleNamespace(pools=[1]))
    assert revision.part(owner, "state", "_run") == 3
    assert revision.part(owner, "cache.pools", "banks") == [1]
    assert revision.part(owner, "reader.native") is None
