"""Kimi's tokenizer: equal to a plain reading of its published class, on any text and any tokens."""

from __future__ import annotations

import base64
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import regex
import tiny
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers

from engine.errors import CheckpointError
from engine.generation.prompts import render
from engine.tokenizer.kimi import CLASS, MODULE, PATTERN, build, read_ranks, replaces
from engine.tokenizer.open import open_tokenizer
from engine.tokenizer.own_code import own_code

WORDS = (
    "don't", "I'LL", "It'S", "'ſ", "hello", "World", "HTTPServer", "été", "straße", "ΑΒΓαβγ", "привет", "مرحبا", "ไทย",
    "한국어", "ひらがな", "カタカナ", "々〆", "e\u0301", "ǅ", "ª", "12", "3456789", "٣٤٥", "Ⅻ", "½", "  ", "\n\n", "\r\n",
    " \t ", "\u00a0", "\u3000", "\u0085", "\u200b", "\u2028", "\ufeff", "🎉", "👨\u200d👩\u200d👧", "\x00", "[BOS]",
    "<|im_end|>", "<|im_end", "<|nope|>", "==", "...", "的一是", "不了在人", "aaaaaaa", "ababab", "_",
)  # fmt: skip
SOURCE = f'''
import tiktoken
raise RuntimeError("this file was run")
class {CLASS}:
    num_reserved_special_tokens = 256
    pat_str = "|".join([{PATTERN!r}])
    def pre_tokenizer_process(self, text):
        """One part."""
        return [text]
    def apply_chat_template(self, conversation, tools=None, thinking: bool = True, **kwargs):
        return super().apply_chat_template(conversation, tools=tools, **kwargs)
'''


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randint(1, 16)):
        kind = rng.random()
        if kind < 0.6:
            parts.append(rng.choice(WORDS))
        elif kind < 0.8:
            parts.append("".join(rng.choice("ab ' s\n\rX1") for _ in range(rng.randint(1, 12))))
        else:
            parts.append(chr(rng.choice([rng.randint(1, 0x24F), rng.randint(0x250, 0xD7FF), rng.randint(0x1F300, 0x1F6FF)])))
    return "".join(parts)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """A trained vocabulary of 700 tokens, in tiktoken's form."""
    rng = random.Random(0)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [random_text(rng) for _ in range(300)]
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    )
    to_byte = {sign: byte for byte, sign in _signs().items()}
    vocabulary = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    return {bytes(to_byte[sign] for sign in token): rank for token, rank in vocabulary}


def _signs() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return dict(bytes_to_unicode())


def encode(text: str, ranks: dict[bytes, int], special: dict[str, int]) -> list[int]:
    """tiktoken's definition: special tokens, then the pattern's pieces, then merges of the lowest rank, leftmost first."""
    ids: list[int] = []
    for part in regex.split("(" + "|".join(map(regex.escape, sorted(special, key=len, reverse=True))) + ")", text):
        if part in special:
            ids.append(special[part])
            continue
        for piece in regex.findall(f"(?V1){PATTERN}", part):
            parts = [bytes([byte]) for byte in piece.encode()]
            if piece.encode() in ranks:
                parts = [piece.encode()]
            while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]:
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [ranks[part] for part in parts]
    return ids


def kimi_folder(path: Path, ranks: dict[bytes, int], source: str | None = SOURCE, **config: Any) -> Path:
    """A tiny checkpoint with the tokenizer of Kimi's originals."""
    tiny.make(path, "kimi_k25", bits=4)
    (path / "tokenizer.json").unlink()
    lines = (b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    (path / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    if source is not None:
        (path / MODULE).write_text(source)
    base = len(ranks)
    contents = {base: "[BOS]", base + 1: "[EOS]", base + 3: "<|im_end|>", base + 4: "<|tool_call_begin|>"}
    added = {str(n): {"content": text, "special": "tool" not in text, "lstrip": False} for n, text in contents.items()}
    described = {
        "tokenizer_class": CLASS, "auto_map": {"AutoTokenizer": [f"tokenization_kimi.{CLASS}", None]},
        "added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]", **config,
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(described))
    return path


@pytest.fixture(scope="module")
def kimi(tmp_path_factory: pytest.TempPathFactory, ranks: dict[bytes, int]) -> Path:
    path = kimi_folder(tmp_path_factory.mktemp("kimi") / "checkpoint", ranks)
    template = "{{ tools | tojson if tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    (path / "chat_template.jinja").write_text(template)
    return path


def test_tokens_are_those_of_the_published_class(ranks: dict[bytes, int]) -> None:
    names = ["[BOS]", "[EOS]", "<|im_end|>"]
    special = {name: len(ranks) + number for number, name in enumerate(names)}
    built = build(ranks, PATTERN, [AddedToken(name, normalized=False, special=True) for name in names])
    rng = random.Random(1)
    for _ in range(300):
        text = random_text(rng)
        assert built.encode(text).ids == encode(text, ranks, special), repr(text)
    tokens = {
        **{rank: token for token, rank in ranks.items()},
        **{number: name.encode() for name, number in special.items()},
    }
    for _ in range(300):  # any tokens, so that bytes are often not UTF-8
        ids = [rng.randrange(len(tokens)) for _ in range(rng.randint(1, 12))]
        assert built.decode(ids, skip_special_tokens=False) == b"".join(tokens[i] for i in ids).decode(errors="replace")


def test_kimis_tokenizer_opens_without_its_code(kimi: Path, ranks: dict[bytes, int]) -> None:
    opened = open_tokenizer(kimi)  # its file raises when it is run
    tokenizer, base = opened.tokenizer, len(ranks)
    assert (opened.ran, opened.tools) == (None, None)
    assert (tokenizer.bos_token_id, base + 1 in tokenizer.eos_token_ids) == (base, True)
    text = f"Hello 你好<|im_end|>x<|reserved_token_{base + 2}|>"
    ids = tokenizer.encode(text)
    assert ids[-3:] == [base + 3, ranks[b"x"], base + 2] and tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("<|im_end|>", "")
    detokenizer, text = tokenizer.detokenizer, "naïve 的一是 👨‍👩‍👧 \n  x"
    for token in tokenizer.encode(text):
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text == text
    asked = render(tokenizer, [{"role": "user", "content": "hi"}], tools=[{"z": 1, "a": {"y": 2, "b": [{"d": 1, "c": 2}]}}])
    assert tokenizer.decode(asked) == '[{"a": {"b": [{"c": 2, "d": 1}], "y": 2}, "z": 1}][user]hi<|im_end|>'


def test_the_converted_tokenizer_is_stored_and_a_damaged_one_is_built_again(kimi: Path) -> None:
    from engine.system.user_cache import cached_file

    before = open_tokenizer(kimi).tokenizer.encode("Hello 你好")
    files = sorted(cached_file("x").parent.glob("tokenizer-*.json"), key=lambda file: file.stat().st_mtime)
    assert files
    for damage in (b"", b"{}", files[-1].read_bytes()[:-9]):
        files[-1].write_bytes(damage)
        assert open_tokenizer(kimi).tokenizer.encode("Hello 你好") == before


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        (("", ""), True),
        (("return [text]", "return text.split()"), False),
        (("pat_str", "pattern"), False),
        (("super().apply_chat_template(", "chat("), False),
        ((CLASS, "OtherTokenizer"), False),
    ],
)
def test_only_code_that_is_equivalent_is_replaced(tmp_path: Path, change: tuple[str, str], replaced: bool) -> None:
    (tmp_path / "tiktoken.model").touch()
    (tmp_path / MODULE).write_text(SOURCE.replace(*change))
    code = own_code(tmp_path, {"auto_map": [f"tokenization_kimi.{CLASS}"]})
    assert replaces(tmp_path, code) == replaced
    (tmp_path / "tiktoken.model").unlink()
    assert not replaces(tmp_path, code)


def test_a_damaged_vocabulary_is_one_line(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    file = tmp_path / "tiktoken.model"
    whole = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in ranks.items()]
    file.write_bytes(b"\n".join(whole))
    assert read_ranks(file) == ranks
    for lines in (
        [],
        whole[1:],
        [*whole, b"!! 700"],
        [*whole, b"YQ=="],
        [*whole[:300], b"\x00\xff"],
        whole[:200],
    ):
        file.write_bytes(b"\n".join(lines))
        with pytest.raises(CheckpointError, match=r"tiktoken.model is damaged.*copy it again"):
            read_ranks(file)
