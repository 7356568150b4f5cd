"""Exit statuses and help of a parser that all commands share."""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import program
from engine.cli.program import add_command, guarded, make_parser, run_command
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

    assert run_command(lambda: parser(lambda args: None), ["one"]) == 0
    assert run_command(lambda: parser(lambda args: 1), ["one"]) == 1
    assert run_command(lambda: parser(mistake), ["one"]) == 2
    assert capsys.readouterr().err == "error: x=1 is too low; give 2\n"
    assert run_command(lambda: parser(interrupt), ["one"]) == 130


def test_paragraphs_are_wrapped_and_commands_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    text = parser(print).format_help()
    assert "    python -m example --with-an-option\n" in text
    assert all(len(line) <= 60 for line in text.splitlines()) and "Do one thing." in text


def failing(error: BaseException) -> int:
    def run() -> None:
        raise error

    return guarded(run)


def test_foreseeable_trouble_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(OSError(errno.ENOSPC, "No space left on device", "/data/rows")) == 2
    assert failing(MemoryError()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: /data/rows: No space left on device; make room on its disk"
    assert lines[1].startswith("error: memory is exhausted; lower cache_gb") and len(lines) == 2


def test_a_defect_leaves_a_log_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert failing(KeyError("a\nb")) == 70
    (line,) = capsys.readouterr().err.splitlines()
    (log,) = (tmp_path / "headrace" / "defects").iterdir()
    assert line.startswith("error: a defect of Headrace (KeyError: ") and f"in {log}: please send that file" in line
    assert "raise error" in log.read_text() and log.read_text().startswith("headrace 0.")
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    assert failing(KeyError("x")) == 70 and "Traceback" in capsys.readouterr().err


def test_a_defect_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(program.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert failing(KeyError("x")) == 70
    assert "run it again with HEADRACE_DEBUG=1" in capsys.readouterr().err


RUN = "import sys; from engine.cli.program import guarded; sys.exit(guarded(lambda: {}))"
PRINT = "print('\\u25c6 ' + chr(0xdc80) + ' end' * 100_000)"


@pytest.mark.parametrize(
    ("shell", "status"),
    [
        ("{command} >&-", 0),
        ("{command} 2>&-", 0),
        ("{command} >&- 2>&- <&-", 0),
        ("PYTHONIOENCODING=ascii {command} >/dev/null", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {command} >/dev/null", 0),
        ("LC_ALL=xx_YY.none {command} >/dev/null", 0),
        ("{command} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}", 141),
        ("PYTHONUNBUFFERED=1 {command} 2>&1 | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}", 141),
        ("{command} >/dev/full", 2),
    ],
)
def test_unusual_streams(tmp_path: Path, shell: str, status: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(RUN.format(PRINT))
    command = f"{sys.executable} {script}"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(["bash", "-c", shell.format(command=command)], capture_output=True, text=True, env=env)
    assert done.returncode == status, done.stderr
    assert len(done.stderr.splitlines()) == (status == 2) and "Traceback" not in done.stderr


def test_a_closed_stream_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Without a standard output the next file that is opened would get its number, and prints would go there."""
    script = tmp_path / "script.py"
    opened = f"[f := open({str(tmp_path / 'file')!r}, 'w'), print('noise', flush=True), f.write(str(f.fileno()))] and None"
    script.write_text(RUN.format(opened))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    subprocess.run(["bash", "-c", f"{sys.executable} {script} >&- 2>&-"], env=env, check=True)
    assert int((tmp_path / "file").read_text()) > 2
