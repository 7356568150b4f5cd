"""External commands with real processes: their output, each limit, and errors of one line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import ConfigError
from harness.machine.json_command import CommandError, one_line, run_command, split_command


def run(code: str, **more: Any) -> str:
    return run_command([sys.executable, "-S", "-c", code], {"n": 3}, **{"most_bytes": 1000, "timeout_s": 20, **more})


def test_the_request_is_on_stdin_and_the_output_is_returned() -> None:
    assert run("import json, sys; print(json.load(sys.stdin)['n'] + 1)") == "4\n"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no key\\x07 for the model')", "exit status 1: no key? for the model"),
        ("raise SystemExit(3)", "exit status 3"),
        ("print('x' * 2000)", "more than 1,000 bytes of output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "more than 1,000 bytes of output"),
    ],
)
def test_a_failure_is_one_line(code: str, message: str) -> None:
    with pytest.raises(CommandError) as e:
        run(code)
    assert str(e.value) == message


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(CommandError, match=r"no-such-program cannot be started \(No such file"):
        run_command(["no-such-program"], {}, most_bytes=1)


@pytest.mark.parametrize("shared", [False, True])
def test_a_limit_ends_the_command_and_all_it_started(tmp_path: Path, shared: bool) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, time; p = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    begin = time.monotonic()

    def started() -> bool:
        return pid_file.exists() and pid_file.read_text() != ""

    with pytest.raises(CommandError, match="cancelled because the search stops"):
        run(code, interrupted=started, shared=shared)
    assert time.monotonic() - begin < 20
    pid = int(pid_file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    with pytest.raises(CommandError, match=r"no answer within 0\.1 s"):
        run("import time; time.sleep(60)", timeout_s=0.1, shared=shared)


def test_stderr_is_this_process_s_own_if_shared(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match=r"^exit status 1$"):
        run("raise SystemExit('for the log')", shared=True)
    assert capfd.readouterr().err == "for the log\n"


def test_words_are_split_as_a_shell_splits_them() -> None:
    assert split_command("engine.command", "measure --name 'a b'") == ["measure", "--name", "a b"]
    for command, message in (("measure 'me", "cannot be split into words"), (" ", "engine.command is empty")):
        with pytest.raises(ConfigError, match=message):
            split_command("engine.command", command)


def test_one_line_is_short_and_printable() -> None:
    assert one_line("a\nb\t c\x00") == "a b c?"
    assert len(one_line("x " * 5000)) == 500
