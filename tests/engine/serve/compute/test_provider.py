"""The provider hands out the engine's model and opens nothing; models whose caches cannot be merged are served as well."""

from __future__ import annotations

from typing import Any


def test_nothing_else_is_opened(client: Any) -> None:
    provider = client.server.service.generator.model_provider
    assert provider.load("some/model") == (provider.engine.model, provider.engine.tokenizer)
    provider.reset()
    provider.load_default()
    assert provider.model is provider.engine.model and provider.is_batchable
    assert provider.cli_args.prefill_step_size == provider.engine.chunk.tokens
    assert not provider.cli_args.trust_remote_code


def test_a_model_outside_the_batch(start: Any, client: Any) -> None:
    single = start()
    single.server.service.generator.model_provider.is_batchable = False
    for _ in range(2):
        reply = single.text("The mill", max_tokens=6, stop=["\x00"])
        assert reply.json["choices"][0]["text"] == client.text("The mill", max_tokens=6).json["choices"][0]["text"]
    assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert single.metric("requests_running") == 0
