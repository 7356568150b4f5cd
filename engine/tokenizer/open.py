"""Open: mlx-lm's tokenizer of a checkpoint, or one line on why it cannot be opened and what helps.

It takes a second and reads no weights, so commands call it before they load the model. Own code of the checkpoint is run
only with `trust_code`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.config import read_config
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.errors import CheckpointError, first_line

from .kimi import load_kimi, replaces, tools_note
from .own_code import OwnCode, own_code, read_tokenizer_config
from .without_torch import show_torch

VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "*.tiktoken",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
)
PACKAGES = ("tiktoken", "sentencepiece", "protobuf", "blobfile", "tokenizers", "jinja2", "mistral_common", "torch")
WITH_REASON = (KeyError, TypeError, AttributeError, IndexError)  # their text alone does not say what is wrong


@dataclass(frozen=True)
class OpenedTokenizer:
    """mlx-lm's `TokenizerWrapper`, and what a user should know: the code that was run, and what differs for tools."""

    tokenizer: Any
    ran: str | None = None
    tools: str | None = None


def open_tokenizer(path: Path, *, trust_code: bool = False) -> OpenedTokenizer:
    """Open the tokenizer of the checkpoint in the folder `path`. Text ends at each end-of-text token that config.json names.

    trust_code: run the checkpoint's own code if the tokenizer needs it. Raises `CheckpointError`.
    """
    model = read_config(path)
    config = read_tokenizer_config(path)
    code = own_code(path, config)
    eos, vocab = _end_of_text(path, model), _vocab_size(model)
    if code is not None and not trust_code and not replaces(path, code):
        raise CheckpointError(_refusal(path, code))
    try:
        if read_rehearsal(path) is not None:  # transformers would replace parts of it by those of the architecture
            from mlx_lm.tokenizer_utils import TokenizerWrapper
            from transformers import PreTrainedTokenizerFast

            return OpenedTokenizer(TokenizerWrapper(PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))))
        if code is not None and not trust_code:
            return OpenedTokenizer(load_kimi(path, code, config, vocab, eos), tools=tools_note(code))
        from mlx_lm.utils import load_tokenizer

        if code is not None:
            show_torch()
        # Without the argument, transformers would ask on the terminal whether to run the code, and wait for an answer.
        tokenizer = load_tokenizer(path, {"trust_remote_code": trust_code}, eos_token_ids=eos)
        tokenizer.encode("a")  # the first use of a tokenizer may fail as well
        return OpenedTokenizer(tokenizer, ran=None if code is None else code.name)
    except (KeyboardInterrupt, CheckpointError):
        raise
    except BaseException as e:  # wrong files raise almost anything; a panic of tokenizers is no Exception
        raise CheckpointError(_failure(path, code, e)) from e


def code_note(opened: OpenedTokenizer) -> str | None:
    """A line that says which code of the checkpoint was run; None if none was."""
    return None if opened.ran is None else f"runs {opened.ran} of the checkpoint, because --trust-code is given"


def check_template(tokenizer: Any, path: Path) -> None:
    """Raise `CheckpointError` for a chat template of the checkpoint `path` that is no template.

    A checkpoint without one is accepted, and so is a template that refuses a single message.
    """
    import jinja2

    if not tokenizer.has_chat_template:
        return
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    except Exception as e:  # a template is a program of the checkpoint and raises what it likes
        if isinstance(e, jinja2.TemplateError) and not isinstance(e, jinja2.TemplateSyntaxError):
            return
        reason = f"{type(e).__name__}: {first_line(e)}" if isinstance(e, WITH_REASON) else first_line(e)
        at = f", line {e.lineno}" if isinstance(e, jinja2.TemplateSyntaxError) else ""
        raise CheckpointError(
            f"{path}: its chat template cannot be used ({reason}{at}); "
            "copy chat_template.jinja or tokenizer_config.json again"
        ) from e


def _refusal(path: Path, code: OwnCode) -> str:
    where = f"{code.name}, " if code.repository is None else f"{code.name} in another repository, "
    return (
        f"{path}: its tokenizer cannot be opened (it is code of the checkpoint's own, {where}which is never run without "
        "permission); read that file, then allow it with --trust-code (in a study: model.trust_code=true), or give a "
        "conversion of the model with a tokenizer.json"
    )


def _failure(path: Path, code: OwnCode | None, e: BaseException) -> str:
    reason = f"{type(e).__name__}: {first_line(e)}" if isinstance(e, WITH_REASON) else first_line(e)
    said = f"{e} {e.__cause__}".lower()
    if code is not None and "trust_remote_code" in said:
        return _refusal(path, code)
    if not any(True for pattern in VOCABULARIES for _ in path.glob(pattern)):
        reason = "there is no tokenizer.json, tokenizer.model or tiktoken.model"
        remedy = "copy these files from the model's repository"
    elif code is not None and replaces(path, code):
        remedy = f"leave out --trust-code: this tokenizer opens without running {code.name}"
    elif package := _missing_package(e, said):
        remedy = f"run: pip install {package}"
    elif code is not None:
        remedy = f"{code.name} does not run with the transformers here; give a conversion of the model with a tokenizer.json"
    else:
        remedy = "copy tokenizer.json and tokenizer_config.json again from the model's repository"
    return f"{path}: its tokenizer cannot be opened ({reason}); {remedy}"


def _missing_package(e: BaseException, said: str) -> str | None:
    """The package whose absence an error is about; None if it is about something else."""
    if isinstance(e, ModuleNotFoundError) and e.name:
        return e.name.partition(".")[0]
    if named := re.search(r"pip install ([\w.-]+)", said):
        return named[1]
    wants = "install" in said or "requires" in said or "not found in your environment" in said
    return next((name for name in PACKAGES if wants and name in said), None)


def _end_of_text(path: Path, model: Mapping[str, Any]) -> Any:
    """The end-of-text tokens of generation_config.json or config.json, as mlx-lm reads them; None if neither has one."""
    from mlx_lm.utils import load_config

    with contextlib.suppress(Exception):  # a wrong generation_config.json; config.json was read before
        return load_config(path).get("eos_token_id")
    return model.get("eos_token_id")


def _vocab_size(model: Mapping[str, Any]) -> int | None:
    text = model.get("text_config")
    size = text.get("vocab_size") if isinstance(text, Mapping) and "vocab_size" in text else model.get("vocab_size")
    return size if type(size) is int and size > 0 else None
