"""Generation identity: mlx-lm's own loops give the streamed model the resident model's tokens and log-probabilities.

A batch is compared with the resident model in the same batch, since MLX rounds differently in batches of other sizes.
Each family runs with one of the settings in turn: test_families.py and test_identity.py have each family with each of them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator, stream_generate
from tiny import CONFIGS

from engine import Engine, Knobs, footprint, load

RNG = np.random.default_rng(11)
PROMPTS = [RNG.integers(0, 255, length).tolist() for length in (30, 3, 12, 7)]
# Steps of the batch before which prompts join, with the number of tokens of each: from 1 to 4 at once, and back to 1.
JOINS = {0: [(1, 12)], 3: [(2, 6), (3, 5)], 4: [(0, 3)]}
SETTINGS: dict[str, dict[str, Any]] = {
    "every_layer": {}, "window_all": {"sync_window": 0}, "stale_gate": {"prefetch": "stale_gate"}
}  # fmt: skip
Sequence = list[tuple[int, np.ndarray]]  # tokens, each with the log-probabilities of the vocabulary


def alone(engine: Engine) -> list[Sequence]:
    """One text by `stream_generate`, also with a cache of limited size if the model does not make its own caches."""
    limits = (None,) if hasattr(engine.model, "make_cache") else (None, 20)
    return [
        [
            (r.token, np.array(r.logprobs))
            for r in stream_generate(
                engine.model, engine.tokenizer, PROMPTS[0], max_tokens=4, prefill_step_size=16, max_kv_size=limit
            )
        ]
        for limit in limits
    ]


def together(engine: Engine) -> list[Sequence]:
    """Four texts by `BatchGenerator`; they join and leave at different steps."""
    generator = BatchGenerator(engine.model, prefill_step_size=8)
    found: dict[int, Sequence] = defaultdict(list)
    sizes, step = [], 0
    while True:
        for number, tokens in JOINS.get(step, []):
            generator.insert([PROMPTS[number]], max_tokens=[tokens])
        prompts, responses = generator.next()
        if not prompts and not responses and step > max(JOINS):
            break
        for r in responses:
            found[r.uid].append((r.token, np.array(r.logprobs)))
        sizes.append(len(responses))
        step += 1
    assert {1, 2, 3, 4} <= set(sizes) and sizes[-1] == 1, sizes
    assert [len(found[n]) for n in range(4)] == [12, 6, 5, 3]
    return [found[n] for n in range(4)]


def same(one: Sequence, other: Sequence) -> bool:
    return len(one) == len(other) and all(a == b and np.array_equal(x, y) for (a, x), (b, y) in zip(one, other, strict=True))


@pytest.mark.parametrize(("family", "setting"), [*zip(sorted(CONFIGS), itertools.cycle(SETTINGS), strict=False)])
def test_generation_equals_the_resident_model(checkpoint: Callable[..., Path], family: str, setting: str) -> None:
    path = checkpoint(family, 4)
    with load(path) as resident:
        expected = alone(resident) + together(resident)
    assert all(np.isfinite(p).all() for sequence in expected for _, p in sequence)
    f = footprint(path)
    cache_gb = f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)
    with load(path, Knobs(cache_gb=cache_gb, **SETTINGS[setting])) as engine:
        with ThreadPoolExecutor(1) as other:  # not the thread that loaded the model
            all_found = other.submit(alone, engine).result() + together(engine)
        for found, right in zip(all_found, expected, strict=True):
            assert same(found, right)
        assert engine.stats.misses > 0
