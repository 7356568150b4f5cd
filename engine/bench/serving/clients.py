"""Clients: the process that sends a benchmark's requests, and figures of its answers."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from engine.system.strict_json import from_json, to_json

SCRIPT = Path(__file__).with_name("client.py")


class Clients:
    """Commands to the client process, for one server."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self._url = url
        self._process = process

    def one(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request. Raises `HeadraceError` if it is an error."""
        answer: dict[str, Any] = self.at_once([[body]])["answers"][0][0]
        return answer

    def at_once(self, clients: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """The answers to each client's requests, and the seconds in all. Raises `HeadraceError` if one is an error."""
        found = self.send("ask", clients=clients)
        wrong = next((a for answers in found["answers"] for a in answers if a["status"] != 200), None)
        if wrong is not None:
            raise HeadraceError(f"the server answered with status {wrong['status']}: {wrong['error'][:200]}")
        return found

    def send(self, do: str, **command: Any) -> dict[str, Any]:
        """Send a command to the process and wait for its result."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(to_json({"do": do, "url": self._url, **command}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise HeadraceError("the client process has ended; its last words are above")
        result: dict[str, Any] = from_json(line)
        return result


@contextmanager
def clients_of(url: str) -> Iterator[Clients]:
    """A client process for the server at `url`, ended afterwards."""
    command = [sys.executable, str(SCRIPT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Clients(url, process)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def figures(found: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of all clients together, and time to first token: median and largest, in ms."""
    answers = [answer for client in found["answers"] for answer in client]
    ttft = [answer["ttft_s"] * 1e3 for answer in answers]
    return {
        "tok_s": sum(answer["tokens"] for answer in answers) / found["seconds"],
        "ttft_ms": statistics.median(ttft),
        "ttft_ms_most": max(ttft),
    }
