"""Parser: every command of the engine has options, and the levels of a store are numbers."""

from __future__ import annotations

import argparse

from engine.cli.arguments.parser import add_commands


def test_every_command_has_options() -> None:
    parser = argparse.ArgumentParser()
    parsers = parser.add_subparsers()
    add_commands(parsers)
    assert {"generate", "chat", "measure", "quality", "serve", "inspect", "plan", "pack", "replay"} <= set(parsers.choices)
    assert all(len(one._actions) > 1 for one in parsers.choices.values())
    assert parser.parse_args(["pack", "--levels", "2,4,8"]).levels == (2, 4, 8)
