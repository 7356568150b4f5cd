"""The search's own log, `logs/search.log` beside the rows, and what it makes of failures: their cause, and a streak of one.

    2026-11-22 23:10:07Z INFO trial 12 run 0: crash, signal SIGSEGV

Each line is appended and flushed as it comes. A disk that takes no more of it does not end the search.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.results.columns import NOT_RUN, STATUSES

LOG = Path("logs", "search.log")
FAILED = tuple(s for s in STATUSES if s not in ("ok", "stopped", *NOT_RUN))
VARIES = re.compile(  # what differs between two failures of one cause: paths, hashes, numbers
    r"(?P<path>(?<![\w.])[~.]{0,2}/[^\s:,;)'\"]+)"
    r"|(?P<hash>\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b)"
    r"|(?P<number>0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
)


class _Log(logging.FileHandler):
    """Says once on stderr that it cannot write, and goes on."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening the file
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.said:
            self.said = True
            print(f"note: {self.baseFilename} cannot be written ({sys.exc_info()[1]}); going on without it", file=sys.stderr)


def open_log(folder: Path) -> logging.Logger:
    """The log of the study in `folder`. Close it with `close_log`; a second study of the same command has its own."""
    logger = logging.getLogger(f"headrace.{folder}")
    close_log(logger)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with contextlib.suppress(OSError):  # the handler says so
        (folder / LOG).parent.mkdir(exist_ok=True)
    handler = _Log(folder / LOG, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.formatter.converter = time.gmtime  # type: ignore[union-attr]
    logger.addHandler(handler)
    return logger


def close_log(logger: logging.Logger) -> None:
    """Let go of the log's file."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # the disk is full: said already
            handler.close()


def cause(row: Mapping[str, Any]) -> str:
    """Why a row failed, the same for all failures of one kind: its status, and its reason without numbers and paths."""
    lines = str(row["status_reason"] or "").strip().splitlines()
    reason = VARIES.sub(lambda m: "PATH" if m["path"] else "N", lines[-1]) if lines else ""
    reason = " ".join(reason.split())[:120]
    return f"{row['status']}: {reason}" if reason else str(row["status"])


def streak(rows: Sequence[Mapping[str, Any]], since: datetime | None = None) -> tuple[int, str]:
    """How many of the newest runs failed in a row with one and the same cause, and that cause; (0, "") if the last did not.

    `since`, the start of the command, leaves out what an earlier one met: who mends the cause can go on. Rows that were
    not run neither count nor interrupt.
    """
    ran = [r for r in rows if r["status"] not in NOT_RUN and r["started_at"] is not None]
    ran = [r for r in ran if since is None or r["started_at"] >= since]
    ran.sort(key=lambda r: r["started_at"], reverse=True)
    count, first = 0, ""
    for row in ran:
        if row["status"] not in FAILED or (count and cause(row) != first):
            break
        count, first = count + 1, cause(row)
    return count, first
