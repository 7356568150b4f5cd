"""Client of the benchmarks: sends requests from a process without the engine, so that it takes no time of the server's lock.

It reads commands from standard input, one JSON object a line, and answers each with one line. It needs only the standard
library, and starts quickly.
"""

from __future__ import annotations

import http.client
import random
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from engine.system.strict_json import from_json, to_json

TIMEOUT_S = 600
BAD_BODIES = (b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": 7}', b'{"prompt": "x", "max_tokens": -1}', b'{"messages": "x"}')


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send one streamed completion. Returns its text, tokens, and seconds: to the first token, between first and last."""
    begin = time.perf_counter()
    connection, path = _connect(url)
    try:
        content = to_json({**body, "stream": True, "stream_options": {"include_usage": True}})
        connection.request("POST", f"{path}/completions", content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return {"status": response.status, "error": response.read().decode()}
        first = last = 0.0
        text, tokens, cached = "", 0, 0
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = from_json(line[6:])
            if chunk.get("choices"):
                last = time.perf_counter()
                first = first or last
                text += chunk["choices"][0]["text"]
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
                cached = chunk["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0)
        end = time.perf_counter()
        times = {"ttft_s": first - begin, "decode_s": last - first, "seconds": end - begin}
        return {"status": 200, "text": text, "tokens": tokens, "cached": cached, **times}
    finally:
        connection.close()


def ask_all(url: str, clients: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Send each client's requests one after the other, all clients at once. Returns the answers and the seconds in all."""
    answers: list[list[dict[str, Any]]] = [[] for _ in clients]

    def client(number: int) -> None:
        answers[number] = [ask(url, body) for body in clients[number]]

    begin = time.perf_counter()
    in_threads(client, len(clients))
    return {"seconds": time.perf_counter() - begin, "answers": answers}


def soak(url: str, seconds: float, clients: int, prompts: list[str], tokens: int, seed: int) -> dict[str, Any]:
    """Send random requests for `seconds`: streamed and plain ones, some of which end early, and bad bodies. Returns the
    number of answers by status; 0 stands for a connection without an answer."""
    counts: dict[str, int] = {}
    deadline = time.perf_counter() + seconds
    lock = threading.Lock()

    def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while time.perf_counter() < deadline:
            status = _one_of_many(url, rng, prompts, tokens)
            with lock:
                counts[status] = counts.get(status, 0) + 1

    in_threads(client, clients)
    return {"counts": counts}


def in_threads(client: Any, count: int) -> None:
    """Call `client(0)` to `client(count - 1)`, each on its own thread, and wait for all."""
    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _one_of_many(url: str, rng: random.Random, prompts: list[str], tokens: int) -> str:
    kind = rng.choice(("stream", "plain", "chat", "bad", "leave"))
    prompt = rng.choice(prompts)[: rng.randrange(10, 400)]
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": rng.randrange(1, tokens + 1),
        "stream": kind in ("stream", "leave"),
    }
    where = "completions"
    if kind == "chat":
        where = "chat/completions"
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": body["max_tokens"]}
    content = rng.choice(BAD_BODIES) if kind == "bad" else to_json(body).encode()
    connection, path = _connect(url)
    try:
        connection.request("POST", f"{path}/{where}", content, {"Content-Type": "application/json"})
        if kind == "leave" and rng.random() < 0.5:
            return "left"
        response = connection.getresponse()
        if kind == "leave":
            response.read(rng.randrange(1, 200))
            return "left"
        response.read()
        return str(response.status)
    except (OSError, http.client.HTTPException):
        return "0"
    finally:
        connection.close()


def _connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    parts = urlsplit(url)
    return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S), parts.path


def main() -> None:
    for line in sys.stdin:
        command = from_json(line)
        kind = command.pop("do")
        print(to_json(soak(**command) if kind == "soak" else ask_all(**command)), flush=True)


if __name__ == "__main__":
    main()
