"""Loading: an extension that is missing, foreign or older than its sources ends in one line with the remedy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.native import core
from engine.native.load import FILE, load
from engine.native.sources import FOLDER, sources


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the built extension and its sources."""
    monkeypatch.delenv("HEADRACE_NATIVE", raising=False)
    shutil.copy(str(core.__file__), tmp_path / FILE)
    for path in sources():
        copy = tmp_path / path.relative_to(FOLDER)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    return tmp_path


def test_the_same_sources_load(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(checkout).crc32(b"123456789") == 0xCBF43926
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (checkout / FILE).rename(elsewhere / "other.so")
    monkeypatch.setenv("HEADRACE_NATIVE", str(elsewhere / "other.so"))
    assert load(checkout).COMPILER == core.COMPILER


def test_a_missing_file(checkout: Path) -> None:
    (checkout / FILE).unlink()
    with pytest.raises(HeadraceError, match=r"not built \(.*_core.abi3.so is missing\); build it .* pip install -e \. in"):
        load(checkout)


def test_another_machine(checkout: Path) -> None:
    (checkout / FILE).write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    with pytest.raises(HeadraceError, match=r"built for another machine or Python \(.*\); build it"):
        load(checkout)


def test_sources_that_changed_after_the_build(checkout: Path) -> None:
    with open(checkout / "new.cpp", "w") as f:
        f.write("// new\n")
    with pytest.raises(HeadraceError, match=r"older than its sources in .*; build it .* pip install -e \."):
        load(checkout)
    for source in sources(checkout):
        source.unlink()
    assert load(checkout).SOURCES == core.SOURCES, "an installed package has no sources to compare"


def test_a_name_that_is_no_extension(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_NATIVE", str(checkout))
    with pytest.raises(HeadraceError, match=r"no extension module .*; name its file"):
        load()
