"""Context: the number of tokens of the longest evaluation text, without loading a model."""

from __future__ import annotations

from pathlib import Path

from .judge import Judge

BYTES_PER_TOKEN = 4  # of English text in large vocabularies; used only where no tokenizer.json can be read


def longest_context(checkpoint: str | Path, judge: Judge) -> int:
    """Return the tokens of the longest text, prompt and continuation, by the checkpoint's tokenizer.json.

    Without such a file, the number is estimated from the length of the text.
    """
    texts = [text.prompt + text.continuation for text in judge.texts]
    try:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(Path(checkpoint).expanduser() / "tokenizer.json"))
        return max(len(tokenizer.encode(text).ids) for text in texts)
    except Exception:  # tokenizers raises plain Exception for a missing or foreign file; loading the model names the cause
        return max(1, *(len(text.encode()) // BYTES_PER_TOKEN for text in texts))
