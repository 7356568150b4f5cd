"""The fingerprint of the sources: changes with a name and with a byte, and is that of the loaded extension."""

from __future__ import annotations

from pathlib import Path

from engine.native import core
from engine.native.sources import fingerprint, sources


def test_the_extension_has_the_fingerprint_of_its_sources() -> None:
    assert fingerprint() == core.SOURCES or not sources()


def test_a_name_and_a_byte_change_it(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    for name, text in (("a.cpp", "one"), ("part/b.hpp", "two"), ("note.txt", "three")):
        (tmp_path / name).write_text(text)
    assert [p.name for p in sources(tmp_path)] == ["a.cpp", "b.hpp"]
    seen = {fingerprint(tmp_path)}
    (tmp_path / "a.cpp").write_text("two")
    seen.add(fingerprint(tmp_path))
    (tmp_path / "a.cpp").write_text("one")
    (tmp_path / "part" / "b.hpp").rename(tmp_path / "part" / "c.hpp")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 3 and all(len(one) == 16 for one in seen)
    assert fingerprint(tmp_path / "none") == ""
