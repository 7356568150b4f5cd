"""The share of generated JSON that parses: fixed prompts that end in an open object, greedy text, Python's own parser."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from engine.errors import JudgeError

if TYPE_CHECKING:
    from engine.engine import Engine


@dataclass(frozen=True)
class JsonPrompts:
    """Prompts, each as (examples, open): what the model adds to `open` within `max_tokens` is to complete the object."""

    max_tokens: int
    prompts: tuple[tuple[str, str], ...]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over prompts and `max_tokens`."""
        content = json.dumps([self.max_tokens, self.prompts], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @classmethod
    def load(cls, path: str | Path) -> JsonPrompts:
        """From YAML: max_tokens, and prompts as a list of {name, examples, open}. Raises `JudgeError`."""
        import yaml

        path = Path(path).expanduser()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not YAML in UTF-8"
            raise JudgeError(f"JSON prompts {path} cannot be read ({reason}); give a file as json_v1.yaml is") from e
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

    def valid(self, engine: Engine) -> np.ndarray:
        """Of each prompt whether the likeliest text completes its object: bool [prompts]."""
        return np.array([self._completes(engine, *prompt) for prompt in self.prompts])

    def _completes(self, engine: Engine, examples: str, text: str) -> bool:
        for piece in engine.generate(examples + text, self.max_tokens):
            text += piece
            if "}" in piece and parses(text.lstrip()):
                return True
        return False


def parses(text: str) -> bool:
    """Whether a text begins with a whole JSON value; what comes after it does not matter."""
    try:
        json.JSONDecoder(parse_constant=_refuse).raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
