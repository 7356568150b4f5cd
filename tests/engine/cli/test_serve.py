"""The command `serve`: its options, its process and its signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "0.0.0.0"], "is open to other machines"),
        (["--port", "99999"], "--port 99999 is outside"),
        (["--model", "no_such_folder"], "no_such_folder"),
        (["--top-p", "3"], "--top-p 3"),
    ],
)
def test_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_a_process_serves_and_ends_with_sigterm(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("qwen3_moe")
    words = [
        sys.executable,
        "-m",
        "engine",
        "serve",
        "--model",
        str(path),
        "--port",
        "0",
        "--name",
        "mine",
        "--cache-gb",
        "0.001",
    ]
    environment = {**os.environ, "HEADRACE_API_KEY": "secret"}
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("serving mine (streamed"))
            port = int(line.rsplit(":", 1)[1].partition("/")[0])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            body = json.dumps({"prompt": "abc", "max_tokens": 300, "logit_bias": {"255": -100}, "stream": True})
            connection.request("POST", "/v1/completions", body, {"Authorization": "Bearer secret"})
            response = connection.getresponse()
            assert response.status == 200
            response.readline()
            process.send_signal(signal.SIGTERM)
            assert response.read().endswith(b"data: [DONE]\n\n")
            connection.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
