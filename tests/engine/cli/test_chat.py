"""`chat` as users run it: through a pipe, and in a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import add_chat_template, make

from engine.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]
Piped = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(add_chat_template(make(tmp_path_factory.mktemp("chat") / "tiny", "qwen3_moe")))


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: Capture, model: str) -> Callable[..., tuple[int, str, str]]:
    """`piped(input, *options)`: exit status, standard output and standard error."""

    def run(given: bytes, *options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(given), isatty=lambda: False))
        status = main(["chat", "--model", model, "-m", "6", "--cache-gb", "0.0005", *options])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_each_line_is_a_turn_with_its_figures(piped: Piped) -> None:
    status, out, err = piped(b"What turns the wheel?\n\nWhy?\n")
    assert status == 0
    figures = re.findall(
        r"^\[(\d+) tokens?, .*first token .* s, hit rate .*, .* GB read, (\d+) of (\d+) prompt tokens", err, re.M
    )
    (_, none, first), (_, reused, second) = figures
    assert (int(none), int(first)) == (0, len("[user]What turns the wheel?.[assistant]"))
    assert int(first) - 1 <= int(reused) < int(second)
    assert out and "prompt tokens" not in out


def test_the_commands(piped: Piped) -> None:
    _, alone, _ = piped(b"hi\n", "--temp", "1", "--seed", "4")
    status, out, err = piped(b"hi\n/reset\nhi\n/help\n/exit\nhi\n", "--temp", "1", "--seed", "4")
    assert status == 0 and out == alone * 2
    assert "new conversation" in err and "/system TEXT" in err and err.count("prompt tokens reused") == 2
    status, out, err = piped(b"hi\n/system Be brief.\nhi\n/system\nhi\n", "--system-prompt", "Be long.")
    sizes = [int(n) for n in re.findall(r"of (\d+) prompt tokens", err)]
    hi = len("[user]hi.[assistant]")
    assert status == 0 and sizes == [hi + len("[system]Be long.."), hi + len("[system]Be brief.."), hi]
    assert "without a system message" in err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"/rest\n", "/rest is not a command; did you mean /reset?"),
        (b"x" * 600 + b"\nhi\n", "the prompt has 618 tokens; prompt and answer together have at most 512"),
        (b"\xff\n", "line 1 of standard input is not UTF-8"),
    ],
)
def test_a_mistake_is_one_line_and_the_chat_goes_on(piped: Piped, given: bytes, message: str) -> None:
    status, _, err = piped(given)
    assert status == 2
    assert message in err and err.count("error: ") == 1
    assert err.count("prompt tokens reused") == given.count(b"hi")


def test_a_template_that_refuses_a_system_message(piped: Piped, tmp_path: Path) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    path = str(add_chat_template(make(tmp_path / "tiny", "qwen3_moe"), strict))
    status, _, err = piped(b"hi\n", "--model", path, "--system-prompt", "y")
    assert status == 2 and "error: the chat template refuses these messages (no system role; roles: system, user)" in err


class Terminal:
    """The chat in a terminal of some width."""

    def __init__(self, model: str, columns: int, *options: str) -> None:
        self.host, guest = pty.openpty()
        ioctl(guest, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        command = [sys.executable, "-m", "engine", "chat", "--model", model, *options]
        environment = {**os.environ, "TERM": "dumb"}
        environment.pop("COLUMNS", None)
        self.process = subprocess.Popen(
            command, stdin=guest, stdout=guest, stderr=guest, cwd=ROOT, env=environment, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )  # fmt: skip
        os.close(guest)
        self.shown = ""

    def interrupt_until(self, text: str) -> str:
        """Interrupt until `text` is shown: readline misses a signal between the prompt and its wait for a key."""
        for _ in range(30):
            os.kill(self.process.pid, signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.until(text, seconds=2)
        return self.until(text, seconds=2)

    def until(self, text: str, seconds: float = 60) -> str:
        """What is shown, up to `text`, which must come."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} has not come: {self.shown!r}"
            if select.select([self.host], [], [], left)[0]:
                try:
                    self.shown += os.read(self.host, 4096).decode(errors="replace")
                except OSError:  # the other side is closed
                    assert text in self.shown, self.shown
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def type(self, text: str) -> None:
        os.write(self.host, text.encode())

    def close(self) -> int:
        status = self.process.wait(60)
        os.close(self.host)
        return status


def test_a_chat_in_a_narrow_terminal(model: str) -> None:
    terminal = Terminal(model, 60, "-m", "400", "--temp", "1")
    shown = terminal.until("> ")
    assert "/help lists the" in shown
    terminal.type("hi\n")
    terminal.until("hi\r\n")
    time.sleep(0.2)
    os.kill(terminal.process.pid, signal.SIGINT)
    status = terminal.until("interrupted]")
    assert "prompt tokens reused" in " ".join(status.split())
    lines = [line for line in status.rpartition("\r\n[")[2].split("\r\n") if line]
    assert len(lines) > 1 and all(len(line) <= 60 for line in lines)
    terminal.until("> ")
    terminal.interrupt_until("Ctrl-D or /exit ends the chat")
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.close() == 0
