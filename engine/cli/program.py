"""Program: the parser, the outermost handler of errors and the exit statuses that all commands share."""

from __future__ import annotations

import argparse
import errno
import inspect
import io
import os
import platform
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine import __version__
from engine.errors import first_line, foreseeable
from engine.system.user_cache import cached_file


class HelpFormatter(argparse.HelpFormatter):
    """Wraps the paragraphs of a description to the terminal's width, and keeps indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = []
        for paragraph in text.strip().split("\n\n"):
            kept = paragraph.startswith(" ") or "\n " in paragraph
            parts.append(paragraph if kept else textwrap.fill(" ".join(paragraph.split()), width, break_on_hyphens=False))
        return "\n\n".join(parts)


def make_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with `--version`. Its description may be a module's docstring."""
    parser = argparse.ArgumentParser(program, description=description, formatter_class=HelpFormatter)
    add_version(parser)
    return parser


def add_version(parser: argparse.ArgumentParser) -> None:
    """`--version`, which prints the version and ends the command."""
    parser.add_argument("--version", action="version", version=f"headrace {__version__}", help="print the version")


def add_command(commands: Any, name: str, run: Callable[..., int | None], doc: str | None = None) -> argparse.ArgumentParser:
    """A sub-parser of `commands` that runs `run`. Its help is the first line of `doc`, or of the docstring of `run`."""
    text = inspect.cleandoc(doc or run.__doc__ or "")
    parser = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=HelpFormatter)
    add_version(parser)
    parser.set_defaults(run=run)
    return parser


def run_command(make: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> int:
    """Make the parser, parse `argv` and call the chosen command's `run`, all within `guarded`; returns the exit status."""

    def run() -> int | None:
        args = make().parse_args(argv)
        status: int | None = args.run(args)
        return status

    return guarded(run)


def guarded(run: Callable[[], int | None]) -> int:
    """Run a whole command: the outermost handler of every entry point. Returns its exit status.

    0: by default, or what `run` returns. 2: a user's mistake, or the machine's trouble. 70: a defect of this program, whose
    traceback is in a log file. 130: Ctrl-C. 141: the reader of the output has ended. Each error is one line on stderr; with
    HEADRACE_DEBUG=1 the traceback precedes it.
    """
    _usable_streams()
    try:
        status = run() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        return _closed_pipe()
    except Exception as e:
        if isinstance(e, OSError) and e.errno == errno.EIO and e.filename is None and not _writable(sys.stdout):
            return _closed_pipe()  # the terminal is gone
        if os.environ.get("HEADRACE_DEBUG", "0") != "0":
            traceback.print_exc()
        line = foreseeable(e)
        text, status = (line, 2) if line is not None else (_defect(e), 70)
        try:
            print(f"error: {text}", file=sys.stderr, flush=True)
        except OSError:
            return _closed_pipe()
        return status


def _usable_streams() -> None:
    """Open what the caller has closed, so that no file takes the place of a standard stream, and let texts that the stream's
    encoding lacks be printed with a replacement."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _closed_pipe() -> int:
    """Let the interpreter's own flush at the end go nowhere; returns what a shell reports for SIGPIPE."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if not _writable(sys.stdout if number == 1 else sys.stderr):
            os.dup2(nowhere, number)
    return 141


def _writable(stream: Any) -> bool:
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True


def _defect(e: Exception) -> str:
    """Save the traceback of a defect; returns the line that names the file."""
    head = f"headrace {__version__}, Python {platform.python_version()}, {platform.platform()}\n{sys.argv}\n"
    text = head + "".join(traceback.format_exception(e))
    what = f"a defect of Headrace ({type(e).__name__}: {first_line(e)})"
    name = f"defect-{os.getpid()}-{time.monotonic_ns()}.log"
    for folder in (cached_file("defects"), Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError:
            continue
        return f"{what}; its traceback is in {folder / name}: please send that file as an issue of the project"
    return f"{what}; no log could be written: please run it again with HEADRACE_DEBUG=1 and send what it prints"
