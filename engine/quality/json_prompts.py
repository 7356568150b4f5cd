"""JSON prompts: the share of generated JSON that parses.

Every prompt ends in an open object; the text is greedy and the parser is Python's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from engine.errors import JudgeError

Generate = Callable[[str, int], Iterator[str]]  # prompt and most tokens -> pieces of text


@dataclass(frozen=True)
class JsonPrompts:
    """Prompts, each as (examples, open). The model must complete the object that `open` starts within `max_tokens`."""

    max_tokens: int
    prompts: tuple[tuple[str, str], ...]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over prompts and `max_tokens`."""
        content = json.dumps([self.max_tokens, self.prompts], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> JsonPrompts:
        """Read YAML with `max_tokens` and `prompts`, a list of {name, examples, open}. Raises `JudgeError`."""
        import yaml

        path = Path(path).expanduser()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not YAML in UTF-8"
            raise JudgeError(f"JSON prompts {path} cannot be read ({reason}); give a file like json_v1.yaml") from e
        content = content if isinstance(content, dict) else {}
        limit, entries = content.get("max_tokens"), content.get("prompts")
        if type(limit) is not int or limit < 1 or not isinstance(entries, list) or not entries:
            raise JudgeError(f"JSON prompts {path} need max_tokens of at least 1 and a list of prompts; see json_v1.yaml")
        prompts = []
        for i, entry in enumerate(entries):
            parts = [entry.get(k) if isinstance(entry, dict) else None for k in ("examples", "open")]
            if not all(isinstance(p, str) for p in parts) or not str(parts[1]).lstrip().startswith("{"):
                raise JudgeError(f"JSON prompts {path}, entry {i}: it needs examples, and open that begins with {{")
            prompts.append((str(parts[0]), str(parts[1])))
        return cls(limit, tuple(prompts))

    def valid(self, generate: Generate) -> np.ndarray:
        """Return for each prompt whether the greedy text completes its object: bool [prompts]."""
        return np.array([self._completes(generate, *prompt) for prompt in self.prompts])

    def _completes(self, generate: Generate, examples: str, text: str) -> bool:
        for piece in generate(examples + text, self.max_tokens):
            text += piece
            if "}" in piece and parses(text.lstrip()):
                return True
        return False


def parses(text: str) -> bool:
    """Return whether a text begins with a complete JSON value; text after it is ignored."""
    try:
        json.JSONDecoder(parse_constant=_refuse).raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
