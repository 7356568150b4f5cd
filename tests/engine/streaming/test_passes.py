"""Passes: calls of the model by mlx-lm's generation code or by a user are counted like the engine's own."""

from __future__ import annotations

import errno
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pyarrow.parquet as pq
import pytest
from mlx_lm.generate import BatchGenerator, generate_step, speculative_generate_step, stream_generate
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import does_model_support_input_embeddings
from tiny import make

from engine import Engine, Knobs, footprint, load
from engine.errors import ReadError

PROMPT = np.random.default_rng(5).integers(0, 255, 60).tolist()
NEW = 6


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("qwen3_moe", 4)


@pytest.fixture(scope="module")
def small(path: Path) -> float:
    return footprint(path).one_token_gb


@pytest.fixture(scope="module")
def resident(path: Path) -> Iterator[Engine]:
    with load(path) as engine:
        yield engine


def generated(engine: Engine, prompt: list[int] = PROMPT, **more: Any) -> list[int]:
    """Tokens by mlx-lm's loop."""
    return [int(token) for token, _ in generate_step(mx.array(prompt), engine.model, max_tokens=NEW, **more)]


def own(engine: Engine, prompt: list[int] = PROMPT) -> list[int]:
    """The same tokens by the engine's own passes."""
    engine.forward.begin()
    cache = make_prompt_cache(engine.model)
    engine.forward.prefill_cache(prompt[:-1], cache)
    tokens = [int(mx.argmax(engine.forward.logits(prompt[-1:], cache)[0]))]
    for _ in range(NEW):
        tokens.append(int(mx.argmax(engine.forward.decode(tokens[-1], cache)[0])))
    return tokens[:NEW]


def books(engine: Engine, exact: bool) -> dict[str, Any]:
    """Counters; only demand reads are the same in every run, since speculative ones depend on time."""
    s = engine.stats
    names = ("tokens", "hits", "misses", "reads", "bytes_read", "swapped", "dropped") if exact else ("tokens",)
    return {"requests": s.hits + s.misses, **{name: getattr(s, name) for name in names}}


@pytest.mark.parametrize(
    "other",
    [{}, {"sync_window": 0}, {"prefetch": "stale_gate"}, {"cold_drop": 0.8}, {"cache_prior": 0.5}],
    ids=lambda knobs: "_".join(knobs) or "plain",
)
def test_mlx_lm_counts_and_reads_as_the_engine_does(path: Path, small: float, other: dict[str, Any]) -> None:
    """mlx-lm computes one token more than it yields. The second text shows eviction's clock and a reset."""
    with load(path, Knobs(cache_gb=small, **other)) as theirs, load(path, Knobs(cache_gb=small, **other)) as mine:
        for prompt in (PROMPT, PROMPT[::-1]):
            assert generated(theirs, prompt) == own(mine, prompt)
            exact = not {"sync_window", "prefetch"} & other.keys()
            assert books(theirs, exact) == books(mine, exact)
            assert theirs.state is not None and mine.state is not None
            assert theirs.state.position == mine.state.position
            assert np.array_equal(theirs.state.warmth, mine.state.warmth)
            assert np.array_equal(theirs.uses, mine.uses)
        assert theirs.stats.tokens == 2 * (len(PROMPT) + NEW) and theirs.stats.hit_rate is not None


def test_resident_tokens_are_counted(resident: Engine) -> None:
    resident.stats.reset()
    generated(resident)
    assert resident.stats.tokens == len(PROMPT) + NEW and resident.stats.hit_rate is None


@pytest.mark.parametrize("step", [7, 2048])
def test_a_prefill_by_mlx_lm_reads_what_generate_reads(path: Path, small: float, step: int) -> None:
    """Up to the first token, at the same chunk size: alone, as a batch, and in speculative decoding's own loop."""
    text = "what the last layer makes of a prompt is only needed for its last token"
    with load(path, Knobs(cache_gb=small, prefill_chunk=step)) as engine:
        ids = engine.encode(text)
        next(engine.generate(text, 1))
        expected = engine.stats.bytes_read

    def alone(engine: Engine) -> None:
        generation = generate_step(mx.array(ids), engine.model, max_tokens=0, prefill_step_size=step)
        assert list(generation) == []

    def batch(engine: Engine) -> None:
        generator = BatchGenerator(engine.model, prefill_step_size=step)
        generator.insert([ids], max_tokens=[1])
        while not len(generator._generation_batch):
            generator.next()

    def skipping(engine: Engine) -> None:
        tokens = speculative_generate_step(mx.array(ids), engine.model, engine.model, num_draft_tokens=0, max_tokens=1,
                                           prefill_step_size=step)  # fmt: skip
        next(tokens)

    for run in (alone, batch):
        with load(path, Knobs(cache_gb=small)) as engine:
            run(engine)
            assert engine.stats.bytes_read == expected, run.__name__
    with load(path, Knobs(cache_gb=small)) as engine:
        skipping(engine)
        assert engine.uses[-1].sum() == engine.checkpoint.top_k  # the last layer, for the last token


def test_logits_that_are_used_are_right(path: Path, small: float, resident: Engine) -> None:
    """A user's call, with and without a cache, and a result that is not evaluated before the next call."""
    tokens = [mx.array([PROMPT[:30]]), mx.array([PROMPT[30:]])]
    expected = [np.array(resident.model(t)) for t in tokens]
    with load(path, Knobs(cache_gb=small)) as engine:
        late = [engine.model(t, cache=make_prompt_cache(engine.model)) for t in tokens]
        late += [engine.model(t) for t in tokens]
        single = [engine.model(mx.array([[t]])) for t in PROMPT[:4]]
        for logits, right in zip(late, expected * 2, strict=True):
            assert np.array_equal(np.array(logits), right)
        for token, logits in zip(PROMPT, single, strict=False):
            assert np.array_equal(np.array(logits), np.array(resident.model(mx.array([[token]]))))
        assert engine.stats.tokens == 2 * len(PROMPT) + 4


def test_speculative_decoding_gives_the_same_tokens(path: Path, small: float, resident: Engine) -> None:
    expected = generated(resident)
    with load(path, Knobs(cache_gb=small)) as engine:
        steps = speculative_generate_step(mx.array(PROMPT), engine.model, resident.model, max_tokens=NEW)
        assert [int(token) for token, *_ in steps] == expected
        assert engine.stats.tokens > len(PROMPT)


def test_the_signature_stays(resident: Engine) -> None:
    plain = type(resident.model).__mro__[1]
    assert type(resident.model).__name__ == plain.__name__ == "Model"
    assert inspect.signature(type(resident.model).__call__) == inspect.signature(plain.__call__)
    assert does_model_support_input_embeddings(resident.model)
    embeddings = resident.model.model.embed_tokens(mx.array([PROMPT[:5]]))
    tokens = resident.stats.tokens
    logits = resident.model(mx.array([[]], dtype=mx.int32), input_embeddings=embeddings)
    assert mx.array_equal(logits, resident.model(inputs=mx.array([PROMPT[:5]])))
    assert resident.stats.tokens == tokens + 10


def test_a_full_cache_awaits_nothing(path: Path, resident: Engine) -> None:
    with load(path, Knobs(cache_gb=footprint(path).all_experts_gb)) as engine:
        assert generated(engine) == generated(resident)
        assert engine.passes._queued is None and engine.stats.misses == 0


def test_an_error_ends_the_pass_only(path: Path, small: float, resident: Engine) -> None:
    with load(path, Knobs(cache_gb=small)) as engine:
        generated(engine)
        assert engine.state is not None
        engine.state.reader.native.inject(error=errno.EIO)
        with pytest.raises(ReadError):
            generated(engine, PROMPT[::-1])
        engine.state.reader.native.heal()
        assert not engine.state.skip_last and not engine.state.evaluate_last
        assert generated(engine) == generated(resident)


def test_only_a_text_by_itself_starts_with_the_cache_after_loading(path: Path, small: float) -> None:
    """A prompt that joins a running batch leaves the cache as it is."""
    with load(path, Knobs(cache_gb=small, cold_drop=0.8)) as engine:
        assert engine.depends_on_cache == ["cold_drop"]
        generator = BatchGenerator(engine.model, max_tokens=8)
        generator.insert([PROMPT[:9]])
        for _ in range(4):
            generator.next()
        assert engine.state is not None
        before = engine.state.position
        generator.insert([PROMPT[:5]])
        generator.next()
        assert engine.state.position > before > 9
        while generator.next_generated():
            pass
        generated(engine)
        assert engine.state.position == len(PROMPT) + NEW


def test_a_model_runs_on_any_thread(path: Path, small: float, resident: Engine) -> None:
    """The loading thread, then two others, with a token that the first leaves unevaluated."""
    expected = generated(resident)
    found: list[Any] = []
    for knobs in ({}, {"sync_window": 0}, {"prefetch": "stale_gate"}):
        with load(path, Knobs(cache_gb=small, **knobs)) as engine:  # type: ignore[arg-type]

            def decode(engine: Engine = engine) -> None:
                found.append(generated(engine))
                engine.model(mx.array([[7]]))

            decode()
            for _ in range(2):
                thread = threading.Thread(target=decode)
                thread.start()
                thread.join()
    assert found == [expected] * 9


@pytest.mark.parametrize("cached", [None, 0.0002])
def test_a_position_encoding_made_on_load_works_on_another_thread(tmp_path: Path, cached: float | None) -> None:
    """mlx-lm computes YaRN's frequencies lazily, on the stream of the thread that loads the model."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 128}
    sizes: Any = {"rope_scaling": yarn, "num_hidden_layers": 2}
    path = make(tmp_path / "yarn", "gpt_oss", bits=4, sizes=sizes)
    with load(path, Knobs(cache_gb=cached)) as engine, ThreadPoolExecutor(1) as other:
        assert other.submit(generated, engine).result() == generated(engine)


def test_a_trace_of_mlx_lm_has_every_computed_row(path: Path, small: float, tmp_path: Path) -> None:
    """Two sequences of a batch count one after the other; the prompt's last layer is skipped."""
    with load(path, Knobs(cache_gb=small)) as engine, engine.trace(tmp_path / "t.parquet"):
        generator = BatchGenerator(engine.model, max_tokens=3)
        generator.insert([PROMPT[:8], PROMPT[10:18]])
        while generator.next_generated():
            pass
        tokens = engine.stats.tokens
    table = pq.read_table(tmp_path / "t.parquet").to_pydict()
    assert set(table["token"]) == set(range(tokens)) and tokens > 2 * 8
    rows = len(engine.layers) * tokens - 2 * 7
    assert len(table["expert"]) == rows * engine.checkpoint.top_k
    assert {p for p, t in zip(table["phase"], table["token"], strict=True) if t < 14} == {"prefill"}


def test_stream_generate_gives_the_text_of_generate(path: Path, small: float) -> None:
    with load(path, Knobs(cache_gb=small, cold_drop=0.8)) as engine:
        for _ in range(2):
            text = "".join(r.text for r in stream_generate(engine.model, engine.tokenizer, "The mill", max_tokens=8))
            assert text == "".join(engine.generate("The mill", 8))
