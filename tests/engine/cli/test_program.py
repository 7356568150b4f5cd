"""Exit statuses and help of a parser that all commands share."""

from __future__ import annotations

import argparse

import pytest

from engine.cli.program import add_command, make_parser, run_command
from engine.errors import HeadraceError

DOC = """Noun phrase: what it does.

    python -m example --with-an-option

A paragraph that is much longer than sixty columns and is wrapped again to the width of the terminal, whatever it is.
"""


def parser(run: object) -> argparse.ArgumentParser:
    made = make_parser("example", DOC)
    add_command(made.add_subparsers(required=True), "one", run, "Do one thing.")  # type: ignore[arg-type]
    return made


def test_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    def mistake(args: argparse.Namespace) -> None:
        raise HeadraceError("x=1 is too low; give 2")

    def interrupt(args: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    assert run_command(parser(lambda args: None), ["one"]) == 0
    assert run_command(parser(lambda args: 1), ["one"]) == 1
    assert run_command(parser(mistake), ["one"]) == 2
    assert capsys.readouterr().err == "error: x=1 is too low; give 2\n"
    assert run_command(parser(interrupt), ["one"]) == 130


def test_paragraphs_are_wrapped_and_commands_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = parser(print).format_help()
    assert "    python -m example --with-an-option\n" in text
    assert all(len(line) <= 60 for line in text.splitlines()) and "Do one thing." in text
