"""Read source: a note exactly where reads were not what their mode promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.measure import read_source
from engine.measure.read_source import read_note, source_of


@pytest.mark.parametrize(
    ("share", "source"),
    [(None, None), (0.0, "disk"), (0.05, "disk"), (0.06, "both"), (0.94, "both"), (0.95, "cache"), (1.0, "cache")],
)
def test_source(share: float | None, source: str | None) -> None:
    assert source_of(share) == source


@pytest.mark.parametrize("io_mode", ["buffered", "direct"])
def test_no_note_where_the_disk_was_read_or_nothing_is_known(io_mode: str) -> None:
    assert read_note(io_mode, 0.01) is None and read_note(io_mode, None) is None
    assert read_note("buffered", 0.4) is None


def test_notes_name_the_share_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    buffered, direct = read_note("buffered", 0.97), read_note("direct", 0.5)
    assert buffered is not None and buffered.startswith("97% of the bytes") and "page_cache=cold" in buffered
    assert direct is not None and "50% of the bytes did not come from the disk" in direct
    monkeypatch.setattr(read_source, "compressed_files", list)
    packed = read_note("direct", 1.0, files=[Path("a.safetensors")])
    assert packed is not None and "APFS keeps a.safetensors compressed" in packed
    assert all("\n" not in note for note in (buffered, direct, packed))


def test_a_simulated_disk_reads_from_the_page_cache_on_purpose() -> None:
    assert read_note("buffered", 1.0, limited=True) is None
    assert read_note("direct", 1.0, limited=True) is not None
