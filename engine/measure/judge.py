"""Judge: fixed evaluation texts, each a prompt and a continuation, with a fingerprint that makes figures comparable.

The continuation is teacher-forced, so every trial decodes the same tokens: the routing is real and equal, and one pass gives
both speed and log-likelihood. The fingerprint covers the texts and `METRIC_VERSION`, which is raised whenever the code that
turns texts into figures changes its meaning.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import JudgeError
from engine.system.strict_json import to_json

METRIC_VERSION = 1
MIN_CHARS = 400
MAX_CHARS = 200_000
SEGMENT_CHARS = 1000  # a plain text is cut into pieces of about this size; the last quarter of each is decoded


@dataclass(frozen=True)
class Text:
    """One evaluation text: `prompt` is prefilled, `continuation` is decoded token by token."""

    name: str
    kind: str
    prompt: str
    continuation: str


@dataclass(frozen=True)
class Judge:
    """The fixed texts that every trial of a study is measured on."""

    texts: tuple[Text, ...]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the texts and the version of the metric's code."""
        content = [METRIC_VERSION, *([t.prompt, t.continuation] for t in self.texts)]
        return hashlib.sha256(to_json(content, ensure_ascii=False).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> Judge:
        """Read a YAML list of {name, kind, prompt, continuation}, or any plain text file.

        Raises `JudgeError` if the file cannot be read, is too short or too long, or an entry lacks a part.
        """
        path = Path(path).expanduser()
        try:
            content = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            reason = "is not UTF-8 text" if isinstance(e, UnicodeDecodeError) else f"cannot be read ({e.strerror})"
            raise JudgeError(f"judge {path} {reason}; give a text file, or a YAML list of prompts") from e
        if path.suffix in (".yaml", ".yml"):
            return cls(_from_yaml(path, content))
        if not MIN_CHARS <= len(content.strip()) <= MAX_CHARS:
            raise JudgeError(
                f"judge {path} has {len(content.strip())} characters; the limits are {MIN_CHARS} and {MAX_CHARS}: "
                f"give a {'longer' if len(content) < MIN_CHARS else 'shorter'} text"
            )
        return cls(_from_text(path.stem, content.strip()))

    @classmethod
    def from_lists(cls, texts: Iterable[Iterable[str]]) -> Judge:
        """Return the texts that `as_lists` describes."""
        return cls(tuple(Text(*text) for text in texts))

    def tokens(self, encode: Callable[..., list[int]]) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of each text's prompt and continuation, as `Engine.encode` makes them.

        Raises `JudgeError` if a text has too few tokens.
        """
        texts = []
        for text in self.texts:
            tokens = encode(text.prompt), encode(text.continuation, start=False)
            if len(tokens[0]) < 1 or len(tokens[1]) < 2:
                raise JudgeError(
                    f"text {text.name} has too few tokens ({len(tokens[0])} + {len(tokens[1])}, at least 1 + 2); lengthen it"
                )
            texts.append(tokens)
        return texts

    def as_lists(self) -> list[list[str]]:
        """Return [name, kind, prompt, continuation] of each text, JSON-ready."""
        return [list(dataclasses.astuple(text)) for text in self.texts]


def _from_yaml(path: Path, content: str) -> tuple[Text, ...]:
    import yaml

    try:
        entries = yaml.safe_load(content)
    except yaml.YAMLError as e:
        raise JudgeError(f"judge {path} is not valid YAML ({str(e).splitlines()[0]}); fix it") from e
    if not isinstance(entries, list) or not entries:
        raise JudgeError(f"judge {path} holds no list; write a YAML list of name, kind, prompt, continuation")
    texts = []
    for i, entry in enumerate(entries):
        parts = [entry.get(k) if isinstance(entry, dict) else None for k in ("name", "kind", "prompt", "continuation")]
        if not all(isinstance(p, str) and p for p in parts):
            raise JudgeError(f"judge {path}, entry {i}: it needs non-empty name, kind, prompt and continuation")
        texts.append(Text(*map(str, parts)))
    return tuple(texts)


def _from_text(name: str, content: str) -> tuple[Text, ...]:
    """Cut a text into equal pieces of about SEGMENT_CHARS; the last quarter of each is its continuation."""
    count = max(1, round(len(content) / SEGMENT_CHARS))
    size = -(-len(content) // count)
    texts = []
    for i in range(count):
        piece = content[i * size : (i + 1) * size]
        cut = len(piece) * 3 // 4
        texts.append(Text(f"{name}-{i}", "text", piece[:cut], piece[cut:]))
    return tuple(texts)
