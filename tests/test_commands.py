"""Documented commands: those of README, docs, docstrings, notebooks and `--help` work.

A command of `harness.search` composes its study (`--cfg job`); the others parse their options. Short commands that write
nothing run to the end.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from read_once import read_once

ROOT = Path(__file__).resolve().parent.parent
START = (
    r"(?:(?:PYTHONPATH=\. |\.venv/bin/)?python -m [a-z]|\.venv/bin/(?:ruff|mypy)\b|make [a-z]|pip install |headrace [a-z])"
)
ELSEWHERE = {  # why a command is not tried here
    "python -m engine.cli.offline profile|routing|reference < request.json": "the engine starts it with its own request",
    "python -m experiments.kimi_mini.loss_curve": "it has no options and writes a picture into the repository",
    "python -m harness.search --help": "the test of help texts prints it",
    "python -m command": "it stands for any command",
    ".venv/bin/ruff format --check --force-exclude": "pre-commit starts it with the names of files",
    "PYTHONPATH=. python -m tests.models_table": "it writes docs/models.md, which other tests compare with what they see",
    "python -m engine": "the name of a program, whose commands are tried",
    "python -m engine bench WHAT PATH": "WHAT stands for the words after it, which are tried",
    "python -m engine.bench.decoding.rehearse < request.json": "a rehearsal starts it with its own request",
    "python -m harness.run.worker ENGINE request.json result.json [IMPORTING]": "the search starts it, with its files",
    "python -m harness.doctor.worker FOLDER FIRST": "the doctor starts it, with a folder of its own making",
}
RUN = ("python -m harness.results.columns", "python -m harness.results.rows", "python -m engine knobs")
PLACEHOLDERS = {  # of values that Hydra checks; elsewhere a word in capitals is as good as a path
    "study=FILE.yaml": "study=experiments/study/demo.yaml",
    "budget.trials=N": "budget.trials=3",
    "budget.hours=H": "budget.hours=1",
    "quality.most=N": "quality.most=3",
    "MODULE[:CLASS]": "my_module:Mine",
    "postgresql://...": "postgresql://USER@HOST:5432/headrace",
    "engine.command=...": "engine.command=./measure",
    "study=a,b": "study=demo,kimi_m2max",
    "search_space=./my_space.yaml": "search_space=./search_spaces/kimi_k2.yaml",
}
HELP = [
    *(
        ["harness.search"],
        ["harness.status"],
        ["harness.report"],
        ["harness.best"],
        ["harness.merge"],
        ["harness.compare"],
        ["harness.doctor"],
        ["harness.forecast"],
        ["harness.rehearse"],
        ["harness.bench"],
        ["engine"],
    ),
    *(["harness.bench", name] for name in ("ask", "confirm", "samplers", "shared", "soak")),
    *(["engine", n] for n in ("generate", "chat", "serve", "measure", "quality", "inspect")),
    *(["engine", n] for n in ("pack", "replay", "plan", "profile", "bench")),
]


class Parsed(BaseException):
    """The arguments were understood."""


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read_once(patch)
        yield


def commands(text: str) -> Iterator[str]:
    """Commands on a line of their own or behind a colon, up to a comment or two blanks, and those between backticks."""
    text = re.sub(r"\\\n\s*", "", text)
    for found in re.finditer(rf"(?:^[ \t]*|: +)({START}.*)|`({START}[^`]+)`", text, re.MULTILINE):
        yield " ".join((found[2] or re.split(r"\s{2,}|\s#", found[1])[0]).split())


def offers(template: str) -> Iterator[str]:
    """The overrides that the help of `harness.search` offers: `What it is for: OVERRIDES`, two in a line."""
    for cell in re.split(r"\s{2,}", template):
        what, colon, overrides = cell.partition(": ")
        if colon and what[:1].isupper() and "=" in overrides and "${" not in overrides:
            yield from (f"python -m harness.search {one}" for one in overrides.split(" or "))


def documented() -> dict[str, str]:
    """Command -> the file that says it, of all that git knows of but what a study wrote."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found: dict[str, str] = {}
    for name in listed:
        path = ROOT / name
        if name.startswith(("tests/", "results/published/")) or path.suffix not in (".md", ".py", ".ipynb", ".yaml"):
            continue
        text = path.read_text(encoding="utf-8")
        some = list(commands(text)) if path.suffix in (".md", ".yaml") else []
        if path.suffix == ".py" and re.search(START, text):
            nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef))
            some = [c for n in nodes for c in commands(ast.get_docstring(n) or "")]
        if path.suffix == ".ipynb":
            some = [c for cell in json.loads(text)["cells"] for c in commands("".join(cell["source"]))]
        if name == "experiments/config.yaml":
            some += offers(text[text.index("template:") :])
        found |= {c: name for c in some if c not in found}
    return found


def works(command: str, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Why a command does not work; None if it does."""
    command = re.sub(r" > \S+$", "", command)
    for placeholder, value in PLACEHOLDERS.items():
        command = command.replace(placeholder, value)
    words = shlex.split(os.path.expandvars(re.sub(r"\s\[(.*?)\](?=\s|$)", r" \1", command)))  # [what may be left out]
    words = words[1:] if words[0] == "PYTHONPATH=." else words
    if words[0] == "headrace":
        words = _as_module(words[1:])
    if words[0] in (".venv/bin/ruff", ".venv/bin/mypy"):
        recipe = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
        return None if " ".join(words) in recipe else "`make lint` runs something else"
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        return done.stderr if done.returncode else None
    if words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        known = {".", *(f".[{name}]" for name in extras)}
        return None if words[2] == "-e" and set(words[3:]) <= known else f"pyproject.toml has {', '.join(sorted(known))}"
    module, arguments = words[2], words[3:]
    if module == "pytest":
        return next((f"{a} is not there" for a in arguments if "/" in a and not (ROOT / a).exists()), None)
    if module == "harness.search":
        return _composes([a for a in arguments if a != "overrides"], monkeypatch)
    if command in RUN:
        return _ends(module, arguments, monkeypatch, parse_only=False)
    if not any((ROOT / module.replace(".", "/")).with_suffix(end).exists() for end in ("", ".py")):
        return f"there is no module {module}, and this test does not know what else it is"
    return _ends(module, arguments, monkeypatch, parse_only=True)


def _as_module(words: list[str]) -> list[str]:
    """A command of the console script as the command of a module."""
    if words[0] in ("search", "status", "report", "best", "merge", "compare", "doctor", "rehearse", "forecast"):
        return ["python", "-m", f"harness.{words[0]}", *words[1:]]
    if words[:2] == ["bench", "search"]:
        return ["python", "-m", "harness.bench", *words[2:]]
    return ["python", "-m", "engine", *(["bench", *words[2:]] if words[:2] == ["bench", "engine"] else words)]


def _composes(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    from harness import search

    sweep = "-m" in arguments  # Hydra shows no configuration of several
    for one in ("demo", "kimi_m2max") if sweep else ("",):
        given = [re.sub(r"(?<=^study=).*", one, a) if sweep else a for a in arguments if a != "-m"]
        monkeypatch.setattr(sys, "argv", ["search", *given, "--cfg", "job"])
        monkeypatch.setattr(search, "_status", 0)
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()) as out:
            status = search.main()
        if status or "search_space:" not in out.getvalue():
            return said.getvalue()
    return None


def _ends(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, *, parse_only: bool) -> str | None:
    """Run a module as `python -m` does, to its end or until its arguments are parsed."""
    parse: Any = argparse.ArgumentParser.parse_args

    def parsed(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        found = parse(self, args, namespace)
        if parse_only:
            raise Parsed
        return found

    with contextlib.ExitStack() as held:
        patch = held.enter_context(monkeypatch.context())
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        patch.setattr(sys, "argv", [module, *arguments])
        said = held.enter_context(contextlib.redirect_stderr(io.StringIO()))
        out = held.enter_context(contextlib.redirect_stdout(io.StringIO()))
        held.enter_context(warnings.catch_warnings(action="ignore"))
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Parsed:
            return None
        except SystemExit as e:
            if e.code:
                return said.getvalue() or f"exit status {e.code}"
    return None if out.getvalue() else "it printed nothing"


DOCUMENTED = documented()


@pytest.mark.parametrize("command", DOCUMENTED)
def test_a_documented_command_works(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if command not in ELSEWHERE:
        wrong = works(command, monkeypatch)
        assert wrong is None, f"{DOCUMENTED[command]}: `{command}` does not work: {wrong}"


@pytest.mark.parametrize("program", HELP, ids=" ".join)
def test_help_is_printed_and_its_commands_work(program: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*program, "--help"])
    warnings.simplefilter("ignore")  # of runpy, for what was imported before
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as end:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    assert not end.value.code and f"python -m {program[0]}" in out.getvalue()
    for command in commands(out.getvalue()):
        if command not in DOCUMENTED:
            assert works(command, monkeypatch) is None, command


def test_commands_are_found_where_they_are_said() -> None:
    """The reading itself: a line of its own, a continued one, one between backticks; and none in running text."""
    lines = ("    make search      # it", "    python -m engine a --b \\", "        --c  what", "so `python -m harness.x",
             "y` does", "we make things")  # fmt: skip
    text = "\n".join(lines)
    assert list(commands(text)) == ["make search", "python -m engine a --b --c", "python -m harness.x y"]
    assert len(DOCUMENTED) > 60
    files = {"README.md", "docs/search.md", "docs/results.md", "docs/developing.md", "docs/evidence/speed.md"}
    assert files | {"harness/status.py", "experiments/config.yaml"} <= set(DOCUMENTED.values())
    assert "python -m harness.search rounds=3" in DOCUMENTED
    assert set(ELSEWHERE) <= set(DOCUMENTED), "an exception without its command"


def test_a_command_that_does_not_work_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        *("python -m engine genrate", "python -m harness.status --jsn demo", "python -m harness.search budget.trails=3"),
        *("make nothing_of_the_kind", "pip install -e '.[nix]'", "python -m harness.nix"),
    ):
        assert works(command, monkeypatch), command


def test_a_published_study_is_reported_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from harness import report, status

    whole = "24 trials (ok), 2 settings not run (infeasible), reference measured"
    shutil.copytree(ROOT / "results" / "published" / "demo_ssd_0.1", tmp_path / "results" / "demo_ssd_0.1")
    monkeypatch.chdir(tmp_path)
    reported: list[Path] = []
    monkeypatch.setattr(report, "report", lambda folder, rows: reported.append(folder))
    assert report.main(["demo_ssd_0.1"]) == 0
    assert reported == [tmp_path / "results" / "demo_ssd_0.1"]
    assert status.main(["demo_ssd_0.1"]) == 0
    assert whole in " ".join(capsys.readouterr().out.split())
    for wrong in (["-x"], ["--what", "demo_ssd_0.1"], []):
        with pytest.raises(SystemExit) as usage:
            report.main(wrong)
        assert usage.value.code == 2 and "usage:" in capsys.readouterr().err
    assert report.main(["demo_ssd_0.l"]) == 2
