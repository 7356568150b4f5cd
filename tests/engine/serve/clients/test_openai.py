"""The official `openai` client: chat, completions, streams, tools, and errors as its own exceptions."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import mlx.core as mx
import openai
import pytest

NO_END = {"255": -100}
TEMPLATE = (
    "{# calls: <tool_call>{'name': tool_call.name}</tool_call> #}"
    "{% if tools %}tools:{% for tool in tools %}{{ tool.function.name }},{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="session")
def templated(tiny, tmp_path_factory):
    """The tiny model with a chat template that has tools."""
    path = shutil.copytree(tiny, tmp_path_factory.mktemp("templated") / "tiny")
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def server(start, templated):
    return start(templated, api_key="secret", queue=0, context=256)


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.server.url, api_key="secret", max_retries=0, timeout=60) as found:
        yield found


def chat(client, text="hello", **fields):
    values = {"model": "tiny", "max_tokens": 6, "logit_bias": NO_END, "temperature": 0, **fields}
    return client.chat.completions.create(messages=[{"role": "user", "content": text}], **values)


def complete(client, prompt="abc", **fields):
    values = {"model": "tiny", "max_tokens": 6, "logit_bias": NO_END, "temperature": 0, **fields}
    return client.completions.create(prompt=prompt, **values)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_chat_and_its_stream_are_equal(client):
    whole = chat(client)
    assert whole.object == "chat.completion" and whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 6 and whole.usage.prompt_tokens == len("user: hello\nassistant: ")
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_completion_and_its_stream_are_equal(client):
    whole = complete(client)
    text = "".join(c.choices[0].text for c in complete(client, stream=True))
    assert text == whole.choices[0].text and whole.usage.completion_tokens == 6


def test_logprobs(client):
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(content) == 6 and all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content)
    found = complete(client, logprobs=2).choices[0].logprobs
    assert len(found.token_logprobs) == 6 and all(1 <= len(top) <= 2 for top in found.top_logprobs)


def test_stop_string_is_cut_out(client):
    whole = complete(client, max_tokens=24).choices[0].text
    stop = next((c for c in whole[2:] if c.isprintable()), whole[-1])
    cut = complete(client, max_tokens=24, stop=[stop]).choices[0]
    assert cut.text == whole.partition(stop)[0] and cut.finish_reason == "stop"


def test_second_turn_reuses_the_first(client):
    first = chat(client, "a question of some length")
    answer = first.choices[0].message.content
    turns = [("user", "a question of some length"), ("assistant", answer), ("user", "and now?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    second = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2, logit_bias=NO_END)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1


def test_tools_reach_the_template(client):
    with_tools = chat(client, tools=[TOOL]).usage.prompt_tokens
    assert with_tools > chat(client).usage.prompt_tokens + len("clock")


class Scripted:
    """A model that answers with given tokens, then with end-of-text tokens."""

    def __init__(self, model):
        self._model = model
        self.left: list[int] = []

    def begin(self, tokenizer, text):
        self.left = [*tokenizer.encode(text), tokenizer.eos_token_id]

    def __call__(self, tokens, cache):
        logits = self._model(tokens, cache=cache)
        if tokens.shape[1] > 1:
            return logits
        token = self.left.pop(0) if self.left else 255
        return logits + 1e6 * (mx.arange(logits.shape[-1]) == token)

    def __getattr__(self, name):
        return getattr(self._model, name)


@pytest.mark.parametrize("stream", [False, True])
def test_tool_call_of_the_model(start, templated, stream):
    server = start(templated)
    provider = server.server.service.generator.model_provider
    provider.model = scripted = Scripted(provider.model)
    scripted.begin(provider.tokenizer, 'so: <tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>')
    with openai.OpenAI(base_url=server.server.url, api_key="-", max_retries=0, timeout=60) as client:
        answer = chat(client, tools=[TOOL], max_tokens=200, logit_bias={}, stream=stream)
        if stream:
            chunks = [chunk.choices[0] for chunk in answer if chunk.choices]
            text = "".join(c.delta.content or "" for c in chunks)
            calls = [call for c in chunks for call in c.delta.tool_calls or []]
            finish = chunks[-1].finish_reason
        else:
            message, finish = answer.choices[0].message, answer.choices[0].finish_reason
            text, calls = message.content, message.tool_calls
    assert text == "so: " and finish == "tool_calls"
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [("clock", {"zone": "UTC"})]


def test_errors_are_the_clients_exceptions(client, server):
    for wrong in ({"max_tokens": -1}, {"temperature": "hot"}, {"messages": []}, {"max_tokens": 100_000}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{"model": "tiny", "messages": [{"role": "user", "content": "x"}], **wrong})
        assert caught.value.status_code == 400 and isinstance(caught.value.body, dict) and caught.value.body["message"]
    with pytest.raises(openai.NotFoundError) as missing:
        chat(client, model="gpt-5")
    assert missing.value.code == "model_not_found"
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        chat(stranger)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.BadRequestError, match="256"):
        chat(client, "x" * 400)
    assert chat(client).usage.completion_tokens == 6


def test_full_queue_is_a_rate_limit(client):
    begun = threading.Event()

    def occupy():
        for _ in complete(client, max_tokens=200, stream=True):
            begun.set()

    thread = threading.Thread(target=occupy)
    thread.start()
    assert begun.wait(30)
    with pytest.raises(openai.RateLimitError) as caught:
        complete(client)
    assert int(caught.value.response.headers["Retry-After"]) >= 1
    thread.join(60)
    assert complete(client).usage.completion_tokens == 6


def test_read_error_is_a_server_error_and_the_next_request_is_served(start, templated, tmp_path):
    """The checkpoint's file is cut short, as a disk that fails would have it, and comes back."""
    path = shutil.copytree(templated, tmp_path / "failing")
    server = start(path)
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    with openai.OpenAI(base_url=server.server.url, api_key="-", max_retries=0, timeout=60) as client:
        assert complete(client).usage.completion_tokens == 6
        os.truncate(weights, 4096)
        with pytest.raises(openai.InternalServerError) as caught:
            complete(client, "quite another prompt " * 5)
        assert caught.value.status_code == 500 and "message" in caught.value.body
        weights.write_bytes(content)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if complete(client, "one more prompt").usage.completion_tokens == 6:
                return
    pytest.fail("no answer after the disk was back")
