"""Checkout: a child process that runs the engine of a checkout and answers requests."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import HeadraceError
from engine.model.environment.mlx_environment import VARIABLES
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import child_environment

START = "import sys; sys.path[:0] = [sys.argv[1]]; sys.path.append(sys.argv[2]); from child.driver import main; main()"
SHOWN = 3  # last lines of the process's errors in a message


class Checkout:
    """The process of one checkout, from its first request until `close`. Raises `HeadraceError` if it is no checkout.

    `environment`: MLX's variables for it (`engine.model.environment.mlx_environment`); it gets no others of them.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder.resolve()
        if not (self.folder / "engine" / "__init__.py").exists():
            raise HeadraceError(f"{folder} has no engine/__init__.py; give the folder of a checkout of Headrace")
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - as long as the process
        command = [sys.executable, "-c", START, str(self.folder), str(Path(__file__).parent)]
        self._process = subprocess.Popen(
            command, cwd=self.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env={k: v for k, v in child_environment().items() if k not in VARIABLES.values()} | environment,
        )  # fmt: skip
        self._started = False

    def __enter__(self) -> Checkout:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request. Raises `HeadraceError` with the process's error."""
        assert self._process.stdin is not None
        if not self._started:
            self._started = True
            engine = Path(self._answer()["engine"])
            if not engine.is_relative_to(self.folder):
                raise HeadraceError(f"{self.folder}: its process imports the engine of {engine.parent.parent}")
        try:
            self._process.stdin.write(to_json({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is reported below
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise HeadraceError(
                f"{self.folder}: its process ended with status {self._process.wait()}: {self._last_errors()}"
            )
        answer: dict[str, Any] = from_json(line)
        if "error" in answer:
            raise HeadraceError(f"{self.folder}: {answer['error']}")
        return answer

    def _last_errors(self) -> str:
        self._errors.seek(0)
        return " / ".join(self._errors.read().splitlines()[-SHOWN:])
