"""Sampling: its ranges, and the tokens of mlx-lm's own generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from engine import HeadraceError, Knobs, load
from engine.generation.sampling import Sampling


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 is neither 0 nor at least 0.001"),
        ({"temperature": 1e-9}, "temperature=1e-09 is neither 0"),
        ({"temperature": float("nan")}, "temperature=nan is not a finite number"),
        ({"temperature": True}, "temperature=True is not a finite number"),
        ({"top_p": 0.0}, r"top_p=0 is outside 0 \(excluded\) to 1"),
        ({"top_p": 1.5}, "top_p=1.5 is outside"),
        ({"min_p": -1.0}, "min_p=-1 is outside 0 to 1"),
        ({"top_k": -1}, "top_k=-1 is below 0"),
        ({"top_k": 1.5}, "top_k=1.5 is not a whole number"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 is not above 0"),
        ({"repetition_penalty": "1"}, "repetition_penalty='1' is not a finite number"),
        ({"repetition_context_size": 0}, "repetition_context_size=0 is below 1 token"),
        ({"seed": -1}, "seed=-1 is outside"),
        ({"seed": 2**64}, "seed=18446744073709551616 is outside"),
        ({"max_tokens": 0}, "max_tokens=0 is below 1"),
        ({"stop": ("",)}, "stop string needs at least one character"),
        ({"stop": ["x"]}, "stop string needs"),
    ],
)
def test_a_value_out_of_range_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadraceError, match=message) as refused:
        Sampling(**given)
    assert "\n" not in str(refused.value) and ";" in str(refused.value)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.9, seed=3),
        Sampling(temperature=1.5, top_p=0.8, top_k=20, min_p=0.01, seed=4),
        Sampling(repetition_penalty=1.3, repetition_context_size=5),
        Sampling(temperature=0.7, repetition_penalty=1.2, seed=5),
    ],
    ids=lambda s: f"t{s.temperature:g}-p{s.top_p:g}-r{s.repetition_penalty}",
)
def test_the_tokens_are_those_of_mlx_lm(checkpoint: Callable[..., Path], sampling: Sampling) -> None:
    """The resident model through mlx-lm's `generate_step`, and the streamed one through this loop."""
    path = checkpoint("qwen3_moe")
    with load(path) as resident, load(path, Knobs(cache_gb=0.0005)) as engine:
        ids = engine.encode("The mill wheel turns")
        mx.random.seed(sampling.seed)
        step = generate_step(
            mx.array(ids),
            resident.model,
            max_tokens=16,
            sampler=sampling.sampler(),
            logits_processors=sampling.logits_processors(),
        )
        expected = [int(token) for token, _ in step]
        generation = engine.generation(ids, Sampling(**{**sampling.as_dict(), "max_tokens": 16}))
        "".join(generation)
        made = len(generation.tokens)
        assert generation.tokens == expected[:made]
        assert made == 16 or expected[made] in engine.tokenizer.eos_token_ids


def test_a_top_k_of_the_whole_vocabulary_keeps_every_token() -> None:
    logits = mx.random.normal((1, 8))
    for top_k in (8, 100):
        sampler = Sampling(temperature=1.0, top_k=top_k).sampler(8)
        assert 0 <= int(sampler(logits - mx.logsumexp(logits))[0]) < 8
