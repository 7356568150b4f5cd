"""Client process: what it sends, and what it makes of the answers."""

from __future__ import annotations

import json
import random
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from engine.bench.serving import client


class Stub(BaseHTTPRequestHandler):
    """Streams two tokens and their usage; answers the prompt `bad` with status 400."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        try:
            prompt = json.loads(body).get("prompt")
        except (ValueError, AttributeError):
            prompt = "bad"
        if prompt == "bad":
            self.send_error(400)
            return
        self.send_response(200)
        self.end_headers()
        chunks = [{"choices": [{"text": t}]} for t in "ab"] + [{"choices": [], "usage": {"completion_tokens": 2}}]
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as found:
        found.bodies = []
        Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
        found.url = f"http://127.0.0.1:{found.server_port}/v1"
        yield found
        found.shutdown()


def test_answers_of_several_clients(server):
    found = client.ask_all(server.url, [[{"prompt": "x"}, {"prompt": "y"}], [{"prompt": "bad"}]])
    first, second = found["answers"][0]
    assert (first["status"], first["text"], first["tokens"]) == (200, "ab", 2) and second["status"] == 200
    assert 0 < first["ttft_s"] <= first["seconds"] <= found["seconds"] and first["decode_s"] >= 0
    assert found["answers"][1][0]["status"] == 400
    assert json.loads(server.bodies[0])["stream_options"] == {"include_usage": True}


def test_soak_counts_every_answer(server):
    counts = client.soak(server.url, 0.3, 2, ["some prompt"], 4, 1)["counts"]
    assert set(counts) <= {"200", "400", "left"} and sum(counts.values()) > 3


def test_connection_without_an_answer_is_counted_as_0():
    statuses = {client._one_of_many("http://127.0.0.1:9/v1", random.Random(n), ["x" * 20], 2) for n in range(5)}
    assert statuses == {"0"}
