"""Log of a session: UTC times, one handler per study, and one note about a log that cannot be written."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.session.log import close_log, open_log


def test_lines_are_appended_with_utc_times(tmp_path: Path) -> None:
    for word in ("one", "two"):
        log = open_log(tmp_path)
        log.info("trial %d: %s", 3, word)
        text = (tmp_path / "logs" / "search.log").read_text()  # flushed before it is closed
        assert re.fullmatch(r"[\d-]{10} [\d:]{8}Z INFO trial 3: " + word, text.splitlines()[-1])
        close_log(log)
    written = datetime.strptime(text[:19] + "+0000", "%Y-%m-%d %H:%M:%S%z")
    assert len(text.splitlines()) == 2
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def test_opened_twice_writes_once(tmp_path: Path) -> None:
    open_log(tmp_path)
    open_log(tmp_path).info("once")
    assert (tmp_path / "logs" / "search.log").read_text().count("once") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    os.symlink("/dev/full", tmp_path / "logs" / "search.log")
    log = open_log(tmp_path)
    for i in range(5):
        log.info("line %d", i)
    close_log(log)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "search.log cannot be written ([Errno 28] No space left on device); the search continues without it" in err


def test_a_folder_that_cannot_be_created_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("in the way")
    log = open_log(tmp_path)
    log.info("one")
    log.info("two")
    assert capsys.readouterr().err.count("cannot be written") == 1
