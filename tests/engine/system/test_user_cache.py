"""The user's cache folder and the child that fills it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.system import user_cache
from engine.system.user_cache import cached_file, compute_apart, start_apart, store_in_cache


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = cached_file("a.npz")
    assert file == tmp_path / "headrace" / "a.npz" and not file.exists()
    store_in_cache(file, b"x")
    assert file.read_bytes() == b"x"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cached_file("a") == tmp_path / "home" / ".cache" / "headrace" / "a"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HeadraceError, match=r"cannot be written \(Not a directory\); set XDG_CACHE_HOME to a writable"):
        store_in_cache(tmp_path / "file" / "below" / "a", b"")


def test_a_child_that_fails_gives_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child imports this checkout from any folder; its error is one line."""
    monkeypatch.chdir(tmp_path)
    compute_apart("nothing", "engine.errors")
    with pytest.raises(HeadraceError, match=r"^the plan could not be computed: checkpoint .*x is not a folder"):
        compute_apart("the plan", "engine", "plan", str(tmp_path / "x"))


def test_a_child_that_is_started_leads_its_group_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    child = start_apart("engine", "plan", "/nowhere", given="unread")
    assert os.getpgid(child.pid) == child.pid
    assert child.wait() == 2 and capfd.readouterr() == ("", "")


def test_an_account_without_a_home_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(user_cache, "home", lambda: None)
    user_cache._without_home.cache_clear()
    files = {user_cache.cached_file(name) for name in ("a", "b")}
    assert {file.parent for file in files} == {Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}" / "headrace"}
    assert capsys.readouterr().err.count("note: no home folder") == 1
