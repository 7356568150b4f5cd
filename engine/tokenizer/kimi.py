"""Kimi's tokenizer: the equivalent of `tokenization_kimi.py`, built from tiktoken.model without running that file.

Kimi K2, K2.5 and Kimi Linear are published with a tiktoken vocabulary and a Python class, without a tokenizer.json. Ranks,
pattern and special tokens determine the tokens, and the `tokenizers` library computes the same ones. The pattern and the
number of reserved tokens are read from the class as constants. A class that cannot be read in this way, or that builds chat
prompts without the chat template, is not replaced. The conversion of 160,000 tokens takes about 5 s, so its result is stored
in the user's cache folder.
"""

from __future__ import annotations

import ast
import base64
import binascii
import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer

from engine.errors import CheckpointError, HeadraceError, first_line
from engine.system.user_cache import cached_file, store_in_cache

from .own_code import CONFIG, OwnCode, attribute_of, class_in, source_of

VOCABULARY = "tiktoken.model"
CLASS, MODULE = "TikTokenTokenizer", "tokenization_kimi.py"
# As published: https://huggingface.co/moonshotai/Kimi-K2-Instruct/blob/main/tokenization_kimi.py
PATTERN = "|".join((
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
))  # fmt: skip
RESERVED = 256  # tokens after the vocabulary's own
IN_TEXT = [byte for byte in range(0xF5) if byte not in (0xC0, 0xC1)]  # the bytes that UTF-8 has


def replaces(path: Path, code: OwnCode | None) -> bool:
    """Whether this module opens the tokenizer of the checkpoint `path` instead of its own `code`."""
    if code is None or code.class_name != CLASS or code.file.name != MODULE or not (path / VOCABULARY).is_file():
        return False
    if code.repository is not None or not code.file.exists():
        return True
    cls = _class(code)
    return (
        cls is not None
        and isinstance(attribute_of(cls, "pat_str"), str)
        and _returns_text(_method(cls, "pre_tokenizer_process"))
        and _renders_template(_method(cls, "apply_chat_template"))
    )


def tools_note(code: OwnCode) -> str | None:
    """What differs for a request with tools from the checkpoint's own code; None if nothing does."""
    tree = source_of(code)
    typed = tree is not None and any(
        isinstance(node, ast.ImportFrom) and node.level and node.module == "tool_declaration_ts" for node in tree.body
    )
    return f"tools are written as JSON, as the chat template does; {code.name} writes them as TypeScript" if typed else None


def load_kimi(path: Path, code: OwnCode, config: Mapping[str, Any], vocab_size: int | None, eos: Any) -> Any:
    """mlx-lm's tokenizer of the checkpoint `path`, with the chat templates in it.

    vocab_size: that of the model, the limit of the reserved tokens. Tools are sorted by key before the chat template gets
    them, as `code` does. Raises `CheckpointError` for a damaged vocabulary, and what transformers raises for a wrong
    configuration.
    """
    from mlx_lm.tokenizer_utils import load

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        added = _added_tokens(path, code, config, vocab_size)
        (out / "tokenizer.json").write_bytes(_fast_tokenizer(path, _pattern(code), added))
        kept = {key: value for key, value in config.items() if key not in ("auto_map", "added_tokens_decoder")}
        contents = [token.content for token in added]
        kept |= {f"{name}_token": f"[{name.upper()}]" for name in ("bos", "eos") if _is_default(config, contents, name)}
        kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        (out / CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        for name in ("chat_template.jinja", "chat_template.json"):
            if (path / name).is_file():
                shutil.copyfile(path / name, out / name)
        if (path / "additional_chat_templates").is_dir():
            shutil.copytree(path / "additional_chat_templates", out / "additional_chat_templates")
        wrapper = load(out, {"trust_remote_code": False}, eos_token_ids=eos)
    inner = wrapper._tokenizer
    apply = inner.apply_chat_template

    def apply_with_sorted_tools(conversation: Any, tools: Any = None, **more: Any) -> Any:
        return apply(conversation, tools=_sorted(tools), **more)

    inner.apply_chat_template = apply_with_sorted_tools
    own = (cls := _class(code)) and _method(cls, "apply_chat_template")
    if own and any(argument.arg == "thinking" for argument in (*own.args.args, *own.args.kwonlyargs)):
        wrapper._thinking_kwarg = "thinking"  # as mlx-lm finds it in the class
    return wrapper


def _fast_tokenizer(path: Path, pattern: str, added: list[AddedToken]) -> bytes:
    """The content of tokenizer.json, from the cache folder if it is there and whole."""
    file = path / VOCABULARY
    identity = [pattern, [repr(token) for token in added], version("tokenizers"), version("transformers")]
    digest = hashlib.sha256(json.dumps(identity).encode() + _bytes_of(file)).hexdigest()[:16]
    stored = cached_file(f"tokenizer-{digest}.json")
    with contextlib.suppress(OSError):
        content, _, check = stored.read_bytes().rpartition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() == check:
            return content
    content = build(read_ranks(file), pattern, added).to_str().encode()
    with contextlib.suppress(HeadraceError):  # without a writable cache folder it is built every time
        store_in_cache(stored, content + b"\n" + hashlib.sha256(content).hexdigest().encode())
    return content


def _added_tokens(path: Path, code: OwnCode, config: Mapping[str, Any], vocab_size: int | None) -> list[AddedToken]:
    """The tokens after the vocabulary's own, in their order."""
    base, named = len(read_ranks(path / VOCABULARY)), _named_tokens(path, config)
    cls = _class(code)
    reserved = cls and attribute_of(cls, "num_reserved_special_tokens")
    end = base + (reserved if type(reserved) is int else RESERVED)
    end = max([min(end, vocab_size or end), *(number + 1 for number in named)])
    if end - base > 16 * RESERVED:
        raise CheckpointError(f"{path / CONFIG} names token {end - 1}, but {VOCABULARY} has {base} tokens; copy both again")
    return [
        named.get(number) or AddedToken(f"<|reserved_token_{number}|>", normalized=False, special=False)
        for number in range(base, end)
    ]


def _pattern(code: OwnCode) -> str:
    cls = _class(code)
    found = cls and attribute_of(cls, "pat_str")
    return found if isinstance(found, str) else PATTERN


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{file} cannot be read ({e.strerror}); copy it again") from e


def read_ranks(file: Path) -> dict[bytes, int]:
    """The tokens of a tiktoken vocabulary with their ranks. Raises `CheckpointError` for a damaged file."""
    ranks: dict[bytes, int] = {}
    try:
        for line in _bytes_of(file).splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as e:
        raise CheckpointError(f"{file} is damaged ({first_line(e)}); copy it again") from e
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))) or b"" in ranks:
        raise CheckpointError(f"{file} is damaged: its {len(ranks)} ranks are not 0, 1, 2 and so on; copy it again")
    if lacking := [byte for byte in IN_TEXT if bytes([byte]) not in ranks]:
        raise CheckpointError(f"{file} is damaged: it lacks the byte {lacking[0]:#04x}; copy it again")
    return ranks


def build(ranks: Mapping[bytes, int], pattern: str, added: list[AddedToken]) -> Tokenizer:
    """A tokenizer with tiktoken's tokens. `added` follow the vocabulary in this order."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            return dict(ranks)  # read here, because transformers needs the package tiktoken for it

    Regex(pattern)  # raises for a pattern that is none
    tokenizer: Tokenizer = Converter(vocab_file=VOCABULARY, pattern=pattern).converted()
    tokenizer.add_tokens(added)
    return tokenizer


def _named_tokens(path: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens of `added_tokens_decoder`, by number."""
    found = config.get("added_tokens_decoder") or {}
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    try:
        return {
            int(number): AddedToken(
                token["content"], **{"normalized": False, **{name: bool(token[name]) for name in flags if name in token}}
            )
            for number, token in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path / CONFIG}: added_tokens_decoder is damaged ({first_line(e)}); copy it again") from e


def _is_default(config: Mapping[str, Any], contents: list[str], name: str) -> bool:
    return config.get(f"{name}_token") is None and f"[{name.upper()}]" in contents


def _class(code: OwnCode) -> ast.ClassDef | None:
    tree = source_of(code)
    return None if tree is None else class_in(tree, code.class_name)


def _method(cls: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _returns_text(method: ast.FunctionDef | None) -> bool:
    """Whether the method returns its text as the only part, or is not there."""
    if method is None:
        return True
    body = [node for node in method.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return len(body) == 1 and ast.unparse(body[0]) == f"return [{method.args.args[-1].arg}]"


def _renders_template(method: ast.FunctionDef | None) -> bool:
    """Whether the method ends in transformers' own, or is not there."""
    return method is None or any(
        isinstance(node, ast.Call) and ast.unparse(node.func) == "super().apply_chat_template" for node in ast.walk(method)
    )


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list | tuple) else value
