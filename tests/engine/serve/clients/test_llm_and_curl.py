"""Other clients: the command `llm` with a model of its own configuration, and curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

BODY = {"prompt": "abc", "max_tokens": 6, "temperature": 0, "logit_bias": {"255": -100}}
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def client(start):
    return start(parallel=2)


def test_llm_answers_with_the_server(client, tmp_path):
    models = [{"model_id": "mine", "model_name": "tiny", "api_base": client.server.url, "can_stream": True}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    command = "import sys; sys.argv[0] = 'llm'; from llm.cli import cli; cli()"
    arguments = ["prompt", "hello", "-m", "mine", "--no-log", "-o", "max_tokens", "6", "-o", "temperature", "0"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, "-o", "logit_bias", '{"255": -100}'],
        capture_output=True, timeout=120, stdin=subprocess.DEVNULL,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    expected = client.chat("hello", max_tokens=6, temperature=0).json["choices"][0]["message"]["content"]
    assert done.stdout.decode(errors="replace").rstrip("\n") == expected.replace("\r\n", "\n").rstrip("\n")


def curl(client, *options, path="/completions"):
    command = ["curl", "-sS", "-w", "\n%{http_code}", client.server.url + path, "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, *options], capture_output=True, timeout=60, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


@needs_curl
def test_curl_plain_and_streaming(client):
    status, body = curl(client, "-d", json.dumps(BODY))
    assert status == 200
    text = json.loads(body)["choices"][0]["text"]
    status, body = curl(client, "-N", "-d", json.dumps({**BODY, "stream": True}))
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert status == 200 and lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == text


@needs_curl
def test_curl_two_at_once(client):
    bodies = [{**BODY, "prompt": prompt, "max_tokens": 40} for prompt in ("first", "another")]
    alone = [json.loads(curl(client, "-d", json.dumps(body))[1])["choices"][0]["text"] for body in bodies]
    url, header = client.server.url + "/completions", "Content-Type: application/json"
    both = [
        subprocess.Popen(["curl", "-sS", url, "-H", header, "-d", json.dumps(body)], stdout=subprocess.PIPE)
        for body in bodies
    ]
    assert [json.loads(p.communicate(timeout=60)[0])["choices"][0]["text"] for p in both] == alone


@needs_curl
@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("-d", "{"), 400), (("-d", ""), 400), (("--data-binary", "\\xff"), 400), (("-d", "[]"), 400),
        (("-d", json.dumps({**BODY, "model": "other"})), 404), (("-X", "PUT", "-d", "{}"), 405),
        (("-d", json.dumps({**BODY, "prompt": ""})), 400), (("-d", json.dumps({**BODY, "max_tokens": 0})), 400),
        (("-H", "Content-Length: 999999999999", "-d", "{}"), 413), (("-H", "Transfer-Encoding: chunked", "-d", "{}"), None),
    ],
)  # fmt: skip
def test_curl_with_a_mistake_gets_the_error_as_json(client, options, status):
    found, body = curl(client, *options)
    error = json.loads(body)["error"]
    assert found == status or (status is None and 400 <= found < 500)
    assert error["message"] and error["type"] == "invalid_request_error"
