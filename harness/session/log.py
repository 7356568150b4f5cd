"""Log of a session: `logs/search.log` beside the rows, with UTC times.

    2026-11-22 23:10:07Z INFO trial 12 run 0: crash, signal SIGSEGV

Each line is flushed at once. If the log cannot be written, the session continues without it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path

LOG = Path("logs", "search.log")


class _Log(logging.FileHandler):
    """A file handler that reports a failed write once, on stderr."""

    reported = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # the file cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.reported:
            self.reported = True
            problem = f"{self.baseFilename} cannot be written ({sys.exc_info()[1]})"
            print(f"note: {problem}; the search continues without it", file=sys.stderr)


def open_log(folder: Path) -> logging.Logger:
    """The log of the study in `folder`; close it with `close_log`."""
    logger = logging.getLogger(f"headrace.{folder}")
    close_log(logger)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with contextlib.suppress(OSError):  # the handler reports the failure
        (folder / LOG).parent.mkdir(exist_ok=True)
    handler = _Log(folder / LOG, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.formatter.converter = time.gmtime  # type: ignore[union-attr]
    logger.addHandler(handler)
    return logger


def close_log(logger: logging.Logger) -> None:
    """Close the log's file."""
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk has been reported already
            handler.close()
