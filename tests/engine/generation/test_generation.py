"""Generation: when a text ends, what it counts, and that no pass is computed without use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine import Engine, HeadraceError, Knobs, load
from engine.generation.sampling import Sampling

PROMPT = "The mill wheel turns"


@pytest.fixture(scope="module")
def engine(checkpoint: Callable[..., Path]) -> Iterator[Engine]:
    with load(checkpoint("qwen3_moe"), Knobs(cache_gb=0.0005)) as engine:
        yield engine


def run(engine: Engine, stopped: Callable[[], bool] = lambda: False, **given: object) -> tuple[str, str | None, int]:
    generation = engine.generation(engine.encode(PROMPT), Sampling(**given), stopped=stopped)  # type: ignore[arg-type]
    text = "".join(generation)
    assert text == generation.text
    return text, generation.finish, len(generation.tokens)


def test_the_text_is_that_of_generate_and_ends_at_max_tokens(engine: Engine) -> None:
    text, finish, tokens = run(engine, max_tokens=12)
    assert (finish, tokens) == ("length", 12)
    assert text == "".join(engine.generate(PROMPT, 12))


def test_the_pass_after_the_last_token_is_not_computed(engine: Engine) -> None:
    before = engine.stats.tokens
    run(engine, max_tokens=5)
    assert engine.stats.tokens - before == len(PROMPT) + 4


def test_every_stop_string_ends_the_text_wherever_it_lies_in_the_tokens(engine: Engine) -> None:
    """The tokens of this model are bytes, so that a stop string of several characters always spans several tokens."""
    whole, _, most = run(engine, max_tokens=24)
    for at in range(0, len(whole) - 3, 4):
        stop = whole[at : at + 3]
        text, finish, tokens = run(engine, max_tokens=24, stop=(stop, "never there"))
        assert finish == "stop" and text == whole[: whole.index(stop)]
        assert tokens <= most and stop not in text
    assert run(engine, max_tokens=24, stop=("never there",))[:2] == (whole, "length")


def test_the_end_of_text_token_ends_the_text(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = engine.generation(engine.encode(PROMPT), Sampling(max_tokens=8))
    "".join(generation)
    monkeypatch.setattr(engine.tokenizer, "eos_token_ids", {generation.tokens[3]})
    again = engine.generation(engine.encode(PROMPT), Sampling(max_tokens=8))
    "".join(again)
    assert again.finish == "end"
    assert again.tokens == generation.tokens[: generation.tokens.index(generation.tokens[3])]


def test_a_request_to_stop_is_met_within_a_token(engine: Engine) -> None:
    answers = iter([False] * 4 + [True] * 9)
    assert run(engine, stopped=lambda: next(answers), max_tokens=20)[1:] == ("interrupted", 3)
    assert run(engine, stopped=lambda: True, max_tokens=20) == ("", "interrupted", 0)


def test_the_models_longest_context_ends_the_text(engine: Engine) -> None:
    limit = engine.context_limit
    assert limit == 512
    generation = engine.generation([1] * (limit - 3), Sampling(max_tokens=20))
    "".join(generation)
    assert (generation.finish, len(generation.tokens)) == ("context", 3)
    with pytest.raises(HeadraceError, match=r"the prompt has 512 tokens; .* at most 512"):
        engine.generation([1] * limit, Sampling())
    with pytest.raises(HeadraceError, match="the prompt is empty"):
        engine.generation([], Sampling())


def test_figures(engine: Engine) -> None:
    generation = engine.generation(engine.encode(PROMPT), Sampling(max_tokens=6))
    assert generation.tok_s is None and generation.first_token_s is None
    pieces = list(generation)
    assert len(pieces) == 7  # the last one completes what the detokenizer holds back
    assert generation.first_token_s is not None and generation.tok_s is not None and generation.tok_s > 0
    assert generation.tok_s == pytest.approx(5 / generation.decode_s)


def test_every_end_of_text_token_of_the_checkpoint_counts(chat_model: Callable[..., Path]) -> None:
    """generation_config.json names several for many models, the tokenizer only one."""
    path = chat_model("olmoe")
    (path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    with load(path) as engine:
        assert engine.tokenizer.eos_token_ids == {7, 9, 255}
