"""Long use in short: many requests leave memory and descriptors as they were, and prefixes survive a restart."""

from __future__ import annotations

import gc
import json
import random
import shutil
import socket

import mlx.core as mx
import psutil
import pytest
from tiny import make

from engine import Knobs, footprint

WARM, REQUESTS = 18, 60
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}assistant: {{ m.content.split('</think>')[-1] }}"
    "{% else %}{{ m.role }}: {{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: <think>{% endif %}"
)


def use(client, rng, number):
    """One request of many kinds."""
    kind, prompt = number % 6, "".join(rng.choice("abc xyz") for _ in range(rng.randrange(5, 120)))
    if kind == 0:
        body = json.dumps({"prompt": prompt, "max_tokens": 200, "stream": True, "logit_bias": {"255": -100}}).encode()
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            connection.recv(1)
    elif kind == 1:
        assert client.send("POST", "/v1/completions", b"{").status == 400
    elif kind == 2:
        assert client.chat(prompt, max_tokens=2).status == 200
    else:
        assert client.text(prompt, stream=kind == 3, max_tokens=2).status == 200


def test_memory_and_descriptors_are_flat(start):
    client, rng, process = start(prompt_cache_gb=0.0005), random.Random(1), psutil.Process()
    figures = []
    for begin, end in ((0, WARM), (WARM, WARM + REQUESTS)):
        for number in range(begin, end):
            use(client, rng, number)
        assert client.text("the end").status == 200
        gc.collect()
        mx.clear_cache()
        figures.append((process.num_fds(), process.memory_info().rss, mx.get_active_memory()))
    (fds, rss, active), (fds_after, rss_after, active_after) = figures
    assert fds_after <= fds + 2
    assert active_after - active < 1 << 20
    assert rss_after - rss < 24 << 20
    assert client.metric("prompt_cache_bytes") <= 500_000


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen3_next"])
def test_second_turn_after_a_restart(start, checkpoint, tmp_path, family):
    """Also for caches that cannot be cut back, with a template that leaves the reasoning out of later turns."""
    path = shutil.copytree(checkpoint(family), tmp_path / family)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    options = {"prompt_cache_dir": tmp_path / "prefixes", "name": "tiny"}

    def talk(client, *messages):
        roles = ("user", "assistant") * len(messages)
        turns = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
        body = {"messages": turns, "max_tokens": 5, "logit_bias": {"255": -100}, "temperature": 0}
        reply = client.post("/v1/chat/completions", body).json
        return reply["choices"][0]["message"]["content"], reply["usage"]

    question, edited, other = "a question " * 6, "another question", "and an edited one"
    first = start(path, **options)
    answer, usage = talk(first, question)
    expected, once = talk(first, question, answer, edited)
    shared = usage["prompt_tokens"] - len("<think>")
    assert once["prompt_tokens_details"]["cached_tokens"] >= shared
    first.server.stop()
    again = start(path, **options)
    text, usage = talk(again, question, answer, edited)
    assert usage["prompt_tokens_details"]["cached_tokens"] >= shared
    assert text == expected
    _, usage = talk(again, question, answer, other)
    assert usage["prompt_tokens_details"]["cached_tokens"] >= shared


def test_second_turn_reads_less_than_a_tenth(start, tmp_path):
    """A first turn of 2,000 tokens, in prefill chunks, and a second turn."""
    sizes = {"max_position_embeddings": 4096, "num_experts": 64, "num_hidden_layers": 3}
    path = make(tmp_path / "large", "qwen3_moe", sizes=sizes)
    client = start(path, Knobs(cache_gb=footprint(path).one_token_gb, prefill_chunk=256))
    stats = client.server.service.generator.engine.stats

    def reads(prompt, **fields):
        before = stats.bytes_read
        reply = client.text(prompt, max_tokens=1, **fields).json
        return stats.bytes_read - before, reply

    first = "".join(chr(random.Random(n).randrange(32, 126)) for n in range(2000))
    whole, _ = reads(first)
    answer = client.text(first, max_tokens=8).json["choices"][0]["text"]
    again, reply = reads(f"{first}{answer} ok?")
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= 1999
    assert again < whole / 10
