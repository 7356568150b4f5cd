"""Program: the parser and the exit statuses that all commands share."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from engine import __version__
from engine.errors import HeadraceError
from engine.system.meters.translated import refuse_translated


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


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse `argv` and call the chosen command's `run`. Returns its exit status: 0 by default, 2 after a `HeadraceError`,
    which is one line on stderr, 130 after Ctrl-C, and 141 if the reader of its output has ended."""
    try:
        args = parser.parse_args(argv)
        refuse_translated()
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except HeadraceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has ended
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at the end
        return 141  # what a shell reports for SIGPIPE
