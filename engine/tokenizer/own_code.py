"""Own code: what Python files of a checkpoint its tokenizer needs, read without running them.

A checkpoint may name a class of its own in tokenizer_config.json (`auto_map`). transformers runs that file with every right
of the user. Headrace runs it only with permission, so this module reads the source as text and as a syntax tree.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, first_line

CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class OwnCode:
    """The class that a checkpoint names for its tokenizer, and the file or the repository of the hub that has it."""

    class_name: str
    file: Path
    repository: str | None = None  # None: the file is in the checkpoint

    @property
    def name(self) -> str:
        return self.file.name if self.repository is None else f"{self.repository}/{self.file.name}"


def read_tokenizer_config(path: Path) -> dict[str, Any]:
    """The content of tokenizer_config.json in the folder `path`, empty without the file. Raises `CheckpointError`."""
    file = path / CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} cannot be read ({first_line(e)}); copy it again from the model's repository") from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is not a JSON object; copy it again from the model's repository")
    return content


def own_code(path: Path, config: dict[str, Any]) -> OwnCode | None:
    """The code that the tokenizer of the checkpoint `path` needs; None if transformers' own classes open it."""
    named = config.get("auto_map")
    if isinstance(named, dict):
        named = named.get("AutoTokenizer")
    if isinstance(named, str):
        named = [named]
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list | tuple) else []
    if not names:
        return None
    where, _, reference = names[0].rpartition("--")
    module, _, class_name = reference.rpartition(".")
    return OwnCode(class_name, path / f"{module.replace('.', '/')}.py", where or None)


def source_of(code: OwnCode) -> ast.Module | None:
    """The syntax tree of the code's file; None if it is not in the checkpoint or is not Python."""
    if code.repository is not None:
        return None
    try:
        return ast.parse(code.file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def class_in(tree: ast.Module, name: str) -> ast.ClassDef | None:
    """The class `name` of a module."""
    return next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)


def attribute_of(cls: ast.ClassDef, name: str) -> Any:
    """The value of a class attribute that is a constant, or `"|".join([...])` of constants; None otherwise."""
    for node in cls.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return _constant(node.value)  # type: ignore[attr-defined]
    return None


def _constant(node: ast.expr | None) -> Any:
    joins = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join"
    if joins and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
        glue, parts = _constant(node.func.value), _constant(node.args[0])
        fits = isinstance(glue, str) and isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts)
        return glue.join(parts) if fits else None
    try:
        return None if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
