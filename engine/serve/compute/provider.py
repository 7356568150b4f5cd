"""Model provider: hands the engine's model to mlx-lm's server, which by itself opens whatever a request names."""

from __future__ import annotations

import argparse
from typing import Any

from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.server import ModelProvider

from engine.engine import Engine
from engine.knobs import GB
from engine.serve.options import ServeOptions


class EngineProvider(ModelProvider):
    """One model, loaded before the server starts. It never opens another one and never runs a checkpoint's own code."""

    def __init__(self, engine: Engine, options: ServeOptions) -> None:
        super().__init__(_arguments(engine, options))
        self.engine = engine
        self.model_key = (engine.checkpoint.fingerprint, None, None)  # type: ignore[assignment]
        self.model = engine.model  # type: ignore[assignment]
        self.tokenizer = engine.tokenizer
        self.is_batchable = all(hasattr(cache, "merge") for cache in make_prompt_cache(engine.model))

    def load_default(self) -> None:
        """The model is there already."""

    def load(self, model_path: Any, adapter_path: Any = None, draft_model_path: Any = None) -> tuple[Any, Any]:
        """The engine's model, whatever is named; names are checked before a request gets here."""
        return self.model, self.tokenizer

    def reset(self) -> None:
        """Keep the model: the engine owns it, and closes it."""


def _arguments(engine: Engine, options: ServeOptions) -> argparse.Namespace:
    """The options of mlx-lm's server. The knob `prefill_chunk` is its prefill step."""
    return argparse.Namespace(
        model=None,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=0,
        pipeline=False,
        trust_remote_code=False,
        chat_template="",
        use_default_chat_template=False,
        chat_template_args=dict(options.chat_template_args),
        temp=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        max_tokens=options.max_tokens,
        decode_concurrency=options.parallel,
        prompt_concurrency=options.parallel,
        prefill_step_size=engine.chunk.tokens,
        prompt_cache_bytes=int(options.prompt_cache_gb * GB),
        kv_bits=None,
        kv_group_size=64,
        quantized_kv_start=0,
        allowed_origins=list(options.cors),
    )
