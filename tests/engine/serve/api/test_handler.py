"""Routes and completions over HTTP."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from engine.generation.context import Context
from engine.generation.generation import Generation
from engine.generation.sampling import Sampling
from engine.serve.api import handler
from engine.serve.compute.stop import TextStop


def test_a_completion_has_usage_timings_and_the_models_name(client: Any) -> None:
    reply = client.text("hello", max_tokens=5)
    body = reply.json
    assert reply.status == 200 and body["object"] == "text_completion" and body["model"] == "tiny"
    assert body["usage"]["prompt_tokens"] == 5 and body["usage"]["completion_tokens"] == 5
    assert body["choices"][0]["finish_reason"] == "length"
    timings = body["timings"]
    assert timings["predicted_n"] == 5 and timings["prompt_n"] + timings["cache_n"] == 5
    assert timings["predicted_per_second"] == pytest.approx(5e3 / timings["predicted_ms"], rel=1e-3)
    assert 0 <= timings["hit_rate"] <= 1 and timings["gb_read"] >= 0 and "warning" not in timings


def test_a_stream_has_the_text_of_the_whole_answer(client: Any) -> None:
    whole = client.chat(max_tokens=8, model="tiny").json
    events = client.chat(max_tokens=8, model="tiny", stream=True, stream_options={"include_usage": True}).events
    assert events[-1] == "[DONE]" and all(e["object"] == "chat.completion.chunk" for e in events[:-1])
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-2])
    assert text == (whole["choices"][0]["message"]["content"] or "")
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 8
    assert events[-2]["timings"]["predicted_n"] == 8


def test_text_is_that_of_the_engine(client: Any) -> None:
    reply = client.text("The mill", max_tokens=10)
    engine = client.server.service.generator.engine
    token = reply.json["choices"][0]["text"]
    ids = engine.encode("The mill")
    for _ in range(10):
        logits = engine.logits(ids)[-1]
        logits[255] = -1e9
        ids.append(int(logits.argmax()))
    detokenizer = engine.tokenizer.detokenizer
    for one in ids[8:]:
        detokenizer.add_token(one)
    detokenizer.finalize()
    assert token == detokenizer.text


def test_a_prompt_of_token_ids_and_a_list_of_one_prompt(client: Any) -> None:
    text = client.text("hello").json["choices"][0]["text"]
    ids = client.server.service.generator.engine.encode("hello")
    for prompt in (["hello"], ids, [ids]):
        assert client.text(prompt).json["choices"][0]["text"] == text


def test_a_stop_string_ends_the_answer_before_it(client: Any) -> None:
    text = client.text("hello", max_tokens=12).json["choices"][0]["text"]
    stop = text[6:8]
    body = client.text("hello", max_tokens=100, stop=["never", stop]).json
    assert body["choices"][0]["text"] == text[: text.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop" and body["usage"]["completion_tokens"] <= 13


def test_logprobs_of_both_endpoints(client: Any) -> None:
    content = client.chat(logprobs=True, top_logprobs=3).json["choices"][0]["logprobs"]["content"]
    assert len(content) == 4 and all(len(one["top_logprobs"]) == 3 for one in content)
    assert all(one["logprob"] == pytest.approx(one["top_logprobs"][0]["logprob"]) for one in content)
    logprobs = client.text(logprobs=2).json["choices"][0]["logprobs"]
    assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {4}
    events = client.chat(logprobs=True, stream=True).events[:-1]
    assert sum(len(e["choices"][0]["logprobs"]["content"]) for e in events) == 4


def test_a_seed_repeats_a_sampled_answer(client: Any) -> None:
    texts = [client.text(max_tokens=12, temperature=1.5, seed=seed).json["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_seed_gives_the_text_of_generate(client: Any) -> None:
    engine, sampling = client.server.service.generator.engine, Sampling(max_tokens=12, temperature=0.8, seed=5)
    mx.random.seed(sampling.seed)
    text = "".join(Generation(Context(engine.forward), engine.tokenizer, engine.encode("The mill"), sampling))
    body = {"prompt": "The mill", "max_tokens": 12, "temperature": 0.8, "seed": 5}
    assert client.post("/v1/completions", body).json["choices"][0]["text"] == text


@pytest.mark.parametrize("stream", [True, False])
def test_tools_through_a_template_that_has_them(
    tiny: Path, tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "with_tools"))
    described = json.loads((path / "tokenizer_config.json").read_text())
    text = "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    described["chat_template"] = text + "{# <tool_call> tool_call.name #}"
    (path / "tokenizer_config.json").write_text(json.dumps(described))
    client = start(path)
    words = iter(["I call <tool", '_call>{"name": "f", "argu', 'ments": {"a": 1}}</tool_call>', ""])
    monkeypatch.setattr(TextStop, "text", lambda _: next(words))
    monkeypatch.setattr(TextStop, "finish", lambda _: "")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    reply = client.chat(tools=tools, stream=stream)
    deltas = [e["choices"][0]["delta"] for e in reply.events[:-1]] if stream else [reply.json["choices"][0]["message"]]
    (call,) = [call for delta in deltas for call in delta.get("tool_calls", [])]
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert "".join(delta.get("content") or "" for delta in deltas) == "I call "


def test_models_health_and_unknown_paths(client: Any) -> None:
    models = client.send("GET", "/v1/models").json["data"]
    assert [model["id"] for model in models] == ["tiny"]
    assert client.send("GET", "/v1/models/tiny").json["id"] == "tiny"
    assert client.send("GET", "/v1/models/other").status == 404
    assert client.send("GET", "/health").json == {"status": "ok"}
    assert client.send("GET", "/nothing").json["error"]["code"] == "not_found"
    assert client.text(model="gpt-4").json["error"]["code"] == "model_not_found"


def test_other_methods_are_405(client: Any) -> None:
    for method, path in (("GET", "/v1/completions"), ("POST", "/health"), ("PUT", "/v1/models"), ("BREW", "/health")):
        reply = client.send(method, path, b"" if method != "GET" else None)
        assert reply.status == 405, (method, path)
    assert client.send("HEAD", "/health").body == b""
    assert client.send("OPTIONS", "/v1/completions").status == 405


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_model(client: Any, stream: bool) -> None:
    body = f'{{"prompt": "abc", "max_tokens": 400, "logit_bias": {{"255": -100}}, "stream": {str(stream).lower()}}}'
    before = client.metric("completion_tokens_total")
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        connection.sendall(head.encode())
        while not client.metric("requests_running"):
            time.sleep(0.005)
    deadline = time.monotonic() + 10
    while client.metric("requests_running") and time.monotonic() < deadline:
        time.sleep(0.005)
    client.text()
    assert client.metric("completion_tokens_total") - before < 300


def test_a_long_wait_starts_the_stream(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HOLD_SECONDS", -1.0)
    monkeypatch.setattr(handler, "POLL_SECONDS", 0.001)
    reply = client.text("a much longer prompt" * 10, stream=True)
    assert b": keep-alive" in reply.body and reply.events[-1] == "[DONE]"
