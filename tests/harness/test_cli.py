"""Help and version of every command: it fits 80 columns, names its program, and `--version` is the same everywhere."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine.__main__
from engine import __version__
from harness import cli
from harness.bench import __main__ as bench_main

ROOT = Path(__file__).resolve().parents[2]
ENGINE = tuple(cli.ENGINE)
BENCH = (
    "io", "decode", "beside", "prefill", "hits", "lossy", "bits", "trace", "open", "grids", "pack", "make", "serve",
    "memory", "restored", "products", "identity",
)  # fmt: skip
SEARCH_BENCH = ("samplers", "ask", "shared", "soak", "confirm", "page", "hours")
COMMANDS = [
    "",
    *cli.SEARCH,
    *ENGINE,
    "bench",
    "bench engine",
    "bench search",
    *(f"bench engine {name}" for name in BENCH),
    *(f"bench search {name}" for name in SEARCH_BENCH),
]


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def printed(command: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `headrace COMMAND OPTION` prints."""
    monkeypatch.setattr(sys, "argv", ["headrace"])
    try:
        ended = cli.main([*command.split(), option])
    except SystemExit as e:
        ended = int(e.code or 0)
    assert ended == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_80_columns(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(command, "--help", monkeypatch, capsys)
    assert f"headrace {command}".strip() in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "bench"])
def test_every_command_has_the_version(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(command, "--version", monkeypatch, capsys) == f"headrace {__version__}\n"


def parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub, one in action.choices.items():
                yield from parsers(one, f"{name} {sub}".strip())


def test_the_lists_above_are_complete() -> None:
    names = {name for name, _ in parsers(engine.__main__.parser("engine"), "")} - {"", "bench"}
    assert names == {*ENGINE, *(f"bench {name}" for name in BENCH)}
    assert {module.__name__.rpartition(".")[2] for module in bench_main.MODULES} == set(SEARCH_BENCH)


def test_model_is_an_option_of_every_command_that_opens_one() -> None:
    without = {"", "bench", "knobs", "shapes", "bench make", "bench products"}
    for name, parser in parsers(engine.__main__.parser("engine"), ""):
        assert ("--model" in parser._option_string_actions) == (name not in without), name
        assert "--judge" not in parser.format_help() and "--text " not in parser.format_help()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a command: search, status"),
        (["serach"], "serach is not a command; did you mean search?"),
        (["bench"], "bench needs a package: headrace bench engine NAME"),
        (["bench", "decode"], "bench needs a package: headrace bench engine NAME"),
    ],
)
def test_unknown_commands(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.slow
def test_results_are_read_and_drawn_without_mlx(tmp_path: Path) -> None:
    """Rows, tables, fronts and the report of a published study, in a process that cannot import MLX."""
    study = next((ROOT / "results" / "published").glob("demo*"))
    code = f"""
import shutil
import sys
from pathlib import Path
sys.modules.update({{"mlx": None, "mlx.core": None, "mlx_lm": None}})
import engine, harness.results.rows, harness.show.plots.front_plot, harness.status
from harness import report
from harness.results.rows import read_trials
from harness.show.plots.front_plot import plot_front
df = read_trials({str(study)!r})
plot_front(df, Path({str(tmp_path / "front.png")!r}))
shutil.copytree({str(study)!r}, {str(tmp_path / "study")!r})
sys.exit(report.main([{str(tmp_path / "study")!r}]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recommended settings" in done.stdout and (tmp_path / "front.png").stat().st_size > 10_000
