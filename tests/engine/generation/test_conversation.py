"""Conversation: what a turn reuses, what it repeats, and what stays after an interruption or an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from mlx_lm.utils import load_tokenizer
from tiny import CHAT

from engine import Engine, HeadraceError, Knobs, ReadError, load
from engine.generation.conversation import Conversation
from engine.generation.prompts import split_answer
from engine.generation.sampling import Sampling

# Opens the reasoning of an answer, and leaves the reasoning of earlier answers out.
THINKING = CHAT.replace("m.content", "m.content.split('!')[-1]").replace("[assistant]", "[assistant]<think>")


def conversation(engine: Engine, **given: object) -> Conversation:
    sampling = Sampling(max_tokens=8, **given)  # type: ignore[arg-type]
    return Conversation(engine.forward, engine.tokenizer, sampling, limit=engine.context_limit)


def test_the_second_turn_reads_less(chat_model: Callable[..., Path]) -> None:
    """A long first message, as a document or an agent's instructions are."""
    with load(chat_model(), Knobs(cache_gb=0.0005, prefill_chunk=16)) as engine:
        chat = conversation(engine)
        text = "".join(chat.ask("The mill wheel turns when there is water. " * 6))
        first = chat.answer
        assert first is not None and text == first.text and first.reused == 0
        assert [m["role"] for m in chat.messages] == ["user", "assistant"] and chat.messages[1]["content"] == text
        "".join(chat.ask("Why?"))
        second = chat.answer
        assert second is not None and second.reused >= len(first.prompt) - 1
        assert second.bytes_read < first.bytes_read / 2
        assert second.hit_rate is not None and 0 < second.hit_rate < 1


@pytest.mark.parametrize(
    ("family", "template"),
    [("gpt_oss", CHAT), ("lfm2_moe", CHAT), ("qwen3_moe", THINKING), ("qwen3_next", THINKING)],
    ids=["window", "recurrent", "trimmed, thinking", "recurrent, thinking"],
)
def test_a_turn_gets_the_answer_of_the_whole_conversation(
    chat_model: Callable[..., Path], family: str, template: str
) -> None:
    """Also where the cache cannot be trimmed, and where the template changes the end of the turn before."""
    with load(chat_model(family, template)) as engine:
        chat = conversation(engine)
        for question in ("What turns the wheel?", "Why?", "And then?"):
            held = 0 if chat.answer is None else len(chat.answer.prompt)
            text = "".join(chat.ask(question))
            answer = chat.answer
            assert answer is not None
            whole = engine.generation(answer.prompt, Sampling(max_tokens=8))
            assert "".join(whole) == text
            assert answer.reused >= held - len("[assistant]<think>")


def test_the_reasoning_of_an_answer_is_taken_apart(chat_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(chat_model())
    for name in ("think_start", "think_end"):
        mark = "<think>" if name == "think_start" else "</think>"
        monkeypatch.setattr(tokenizer, f"_{name}", mark)
        monkeypatch.setattr(tokenizer, f"_{name}_tokens", tuple(tokenizer.encode(mark)))
    opened, closed = tokenizer.encode("[assistant]<think>"), tokenizer.encode("[assistant]")
    assert split_answer(tokenizer, opened, "so\n</think>\n\nyes") == ("yes", "so")
    assert split_answer(tokenizer, closed, "<think>so</think>yes") == ("yes", "so")
    assert split_answer(tokenizer, opened, "still thi") == ("", "still thi")
    assert split_answer(tokenizer, opened, "still </thi") == ("", "still </thi")
    assert split_answer(tokenizer, closed, " yes\n") == (" yes\n", "")


def test_an_interrupted_answer_is_part_of_the_conversation(chat_model: Callable[..., Path]) -> None:
    with load(chat_model()) as engine:
        chat = conversation(engine)
        "".join(chat.ask("hi", lambda: True))
        assert chat.messages == [] and chat.answer is not None and chat.answer.finish == "interrupted"
        calls = iter([False] * 5 + [True] * 99)
        part = "".join(chat.ask("hi", lambda: next(calls)))
        assert chat.messages[-1] == {"role": "assistant", "content": part} and 0 < len(chat.answer.tokens) < 8
        pieces = chat.ask("and?")
        begun = next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        assert len(chat.messages) == 4 and chat.messages[-1]["content"] == begun
        text = "".join(chat.ask("so?"))
        assert chat.answer.reused > 0
        assert text == "".join(engine.generation(chat.answer.prompt, Sampling(max_tokens=8)))


def test_an_error_leaves_the_conversation_as_it_was(
    chat_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(chat_model()) as engine:
        chat = conversation(engine)
        "".join(chat.ask("hi"))
        before = list(chat.messages)

        def broken(*_: object) -> None:
            raise ReadError("layer 3 expert 4 could not be read")

        with monkeypatch.context() as patch:
            patch.setattr(engine.forward, "decode", broken)
            with pytest.raises(ReadError):
                list(chat.ask("so?"))
        assert chat.messages == before
        with pytest.raises(HeadraceError, match=r"the prompt has \d+ tokens; .* at most 512"):
            chat.ask("x" * 500)
        assert chat.messages == before
        text = "".join(chat.ask("so?"))
        assert chat.answer is not None and chat.answer.reused == 0  # what only some layers held is forgotten
        assert text == "".join(engine.generation(chat.answer.prompt, Sampling(max_tokens=8)))


def test_a_new_conversation_repeats_the_random_numbers(chat_model: Callable[..., Path]) -> None:
    with load(chat_model()) as engine:
        chat = conversation(engine, temperature=1.5, seed=7)
        texts = ["".join(chat.ask("hi")) for _ in range(2)]
        assert texts[0] != texts[1]
        chat.reset()
        assert ["".join(chat.ask("hi")) for _ in range(2)] == texts
        chat.reset("Be brief.")
        assert chat.messages == [{"role": "system", "content": "Be brief."}]


def test_without_a_template_the_users_next_turn_ends_the_answer(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(checkpoint("qwen3_moe")) as engine:
        chat = conversation(engine)
        assert chat.sampling.stop == ("\nUSER:",)
        script = iter(engine.encode("y\nUSER: x"))
        monkeypatch.setattr(Sampling, "sampler", lambda *_: lambda logprobs: [next(script)])
        assert "".join(chat.ask("hi")) == "y"
        assert chat.messages[-1] == {"role": "assistant", "content": "y"}
