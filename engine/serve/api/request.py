"""Requests: a JSON body as mlx-lm's request and arguments, or a 400 that says which field is wrong.

A field that this server cannot honour is refused, never ignored. Fields that only identify the user, and those that have one
possible value here, are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlx_lm.server import (
    CompletionRequest,
    GenerationArguments,
    LogitsProcessorArguments,
    ModelDescription,
    SamplingArguments,
)

from engine.errors import did_you_mean
from engine.generation.prompts import FALLBACK_STOP
from engine.serve.errors import RequestError
from engine.serve.options import ServeOptions

from .fields import Fields, checked, unsupported, wrong
from .messages import check_messages, check_tools

DEFAULT_MODEL = "default_model"
MODEL = ModelDescription(model=DEFAULT_MODEL, draft=DEFAULT_MODEL, adapter=None)  # type: ignore[arg-type]

# Without effect on the answer.
IDENTIFYING = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "max_completion_tokens", "logit_bias",
    "repetition_penalty", "repetition_context_size", "presence_penalty", "presence_context_size", "frequency_penalty",
    "frequency_context_size", "xtc_probability", "xtc_threshold",
)  # fmt: skip
SHARED = ("model", "stream", "stream_options", "n", "logprobs", *IDENTIFYING, *SAMPLING)
CHAT = (
    "messages", "tools", "tool_choice", "top_logprobs", "response_format", "chat_template_kwargs", "reasoning_effort",
    "modalities",
)  # fmt: skip
TEXT = ("prompt", "best_of", "echo", "suffix")
# Of `apply_chat_template`, set by the server.
TEMPLATE_ARGUMENTS = (
    "tokenize",
    "tools",
    "messages",
    "conversation",
    "add_generation_prompt",
    "chat_template",
    "return_dict",
)
MOST_STOPS = 16
MOST_LOGPROBS = {True: 20, False: 5}  # of chat completions and completions, as the OpenAI API has it


@dataclass(frozen=True)
class ParsedRequest:
    """A valid request. `max_tokens` is None if the request does not limit its answer."""

    chat: bool
    request: CompletionRequest
    args: GenerationArguments
    max_tokens: int | None
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Served:
    """What a request is checked against: the model's name, its vocabulary and abilities, and the server's options."""

    name: str
    vocab: int
    has_template: bool
    has_tools: bool
    options: ServeOptions


def parse_request(body: Mapping[str, Any], served: Served, *, chat: bool) -> ParsedRequest:
    """Check a body of `/v1/chat/completions` (chat) or `/v1/completions`.

    Raises `RequestError`: 404 for an unknown model, otherwise 400.
    """
    fields = Fields(body)
    known = (*SHARED, *(CHAT if chat else TEXT))
    unknown = next((name for name in body if name not in known), None)
    if unknown is not None:
        unknown = unknown[:100]
        hint = did_you_mean(unknown, list(known))
        hint = hint if hint.startswith("did") else "leave it out"
        raise RequestError(400, f"{unknown} is not a field of this server; {hint}", param=unknown, code="unknown_parameter")
    model = fields.get("model", str, DEFAULT_MODEL)
    if model not in (served.name, DEFAULT_MODEL):
        message = f"the model {model[:200]!r} does not exist; this server has {served.name}"
        raise RequestError(404, message, param="model", code="model_not_found")
    stream = fields.get("stream", bool, False)
    fields.only("n", 1)
    logprobs, top = _logprobs(fields, chat=chat)
    most = _max_tokens(fields, chat=chat)
    args = _arguments(fields, served, logprobs, top)
    if chat and not served.has_template:
        args.stop_words.append(FALLBACK_STOP)
    return ParsedRequest(
        chat=chat,
        request=_chat(fields, served) if chat else _text(fields, served),
        args=args,
        max_tokens=most,
        stream=stream,
        include_usage=_include_usage(fields, stream),
    )


def _chat(fields: Fields, served: Served) -> CompletionRequest:
    kind = fields.get("response_format", dict, {"type": "text"}).get("type")
    if kind != "text":
        raise unsupported("response_format", "is supported for type text only; ask for JSON in the prompt")
    fields.only("modalities", ["text"])
    if "messages" not in fields.body:
        raise wrong("messages", "is missing; give a list of messages")
    messages = check_messages(fields.get("messages", list), served.has_template)
    tools = check_tools(fields)
    if tools and not served.has_tools:
        raise unsupported("tools", f"are not in the chat template of {served.name}; leave tools out")
    return CompletionRequest("chat", "", messages, tools, None)


def _text(fields: Fields, served: Served) -> CompletionRequest:
    fields.only("best_of", 1)
    fields.only("echo", False)
    fields.only("suffix", "")
    prompt = fields.body.get("prompt")
    if prompt is None:
        raise wrong("prompt", "is missing; give a string or a list of token ids")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    elif isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt):
        raise wrong("prompt", f"has {len(prompt)} entries; send one request for each prompt")
    if isinstance(prompt, list):
        for token in prompt:
            if type(token) is not int or not 0 <= token < served.vocab:
                raise wrong("prompt", f"is a list with an entry that is no token id of 0 .. {served.vocab - 1}")
    else:
        checked("prompt", prompt, str)
    if not prompt:
        raise wrong("prompt", "is empty; give at least one character")
    text: Any = prompt  # token ids pass as they are
    return CompletionRequest("text", text, [], None, None)


def _arguments(fields: Fields, served: Served, logprobs: bool, top: int) -> GenerationArguments:
    options = served.options
    kwargs = dict(fields.get("chat_template_kwargs", dict, {}))
    for name in kwargs:
        if name in TEMPLATE_ARGUMENTS:
            raise wrong("chat_template_kwargs", f"sets {name}, which the server sets; leave it out")
    if (effort := fields.get("reasoning_effort", str)) is not None:
        kwargs.setdefault("reasoning_effort", effort)
    return GenerationArguments(
        model=MODEL,
        sampling=SamplingArguments(
            temperature=fields.number("temperature", options.temperature, 0, 100),
            top_p=fields.number("top_p", options.top_p, 0, 1),
            top_k=_top_k(fields, served),
            min_p=fields.number("min_p", options.min_p, 0, 1),
            xtc_probability=fields.number("xtc_probability", 0.0, 0, 1),
            xtc_threshold=fields.number("xtc_threshold", 0.1, 0, 1),
        ),
        logits=LogitsProcessorArguments(
            logit_bias=_logit_bias(fields, served.vocab),
            repetition_penalty=fields.number("repetition_penalty", 0.0, 0, 100),
            repetition_context_size=fields.whole("repetition_context_size", 20, 1, 1 << 20),
            presence_penalty=fields.number("presence_penalty", 0.0, -100, 100),
            presence_context_size=fields.whole("presence_context_size", 20, 1, 1 << 20),
            frequency_penalty=fields.number("frequency_penalty", 0.0, -100, 100),
            frequency_context_size=fields.whole("frequency_context_size", 20, 1, 1 << 20),
        ),
        stop_words=_stops(fields),
        max_tokens=options.max_tokens,
        num_draft_tokens=0,
        logprobs=logprobs,
        top_logprobs=top,
        seed=_seed(fields),
        chat_template_kwargs=kwargs or None,
    )


def _top_k(fields: Fields, served: Served) -> int:
    """0, which is off, for a number that excludes no token; mlx-lm raises an error for it in the middle of a batch."""
    top_k = int(fields.whole("top_k", served.options.top_k, 0, 1 << 31))
    return top_k if top_k < served.vocab else 0


def _max_tokens(fields: Fields, *, chat: bool) -> Any:
    newer = fields.whole("max_completion_tokens", None, 1) if chat else None
    if not chat:
        fields.only("max_completion_tokens")
    return newer if newer is not None else fields.whole("max_tokens", None, 1)


def _logprobs(fields: Fields, *, chat: bool) -> tuple[bool, int]:
    most = MOST_LOGPROBS[chat]
    if not chat:
        count = fields.whole("logprobs", None, 0, most)
        return count is not None, count or 0
    logprobs, count = fields.get("logprobs", bool, False), fields.whole("top_logprobs", 0, 0, most)
    if count and not logprobs:
        raise wrong("top_logprobs", "has no effect without logprobs; set logprobs to true")
    return logprobs, count


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.get("stream_options", dict)
    if options is None:
        return False
    if not stream:
        raise wrong("stream_options", "has no effect without stream; set stream to true")
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):
            raise wrong("stream_options", "has a field besides include_usage; leave it out")
    return bool(checked("stream_options.include_usage", options.get("include_usage") or False, bool))


def _stops(fields: Fields) -> list[str]:
    stops = fields.body.get("stop")
    stops = [] if stops is None else [stops] if isinstance(stops, str) else checked("stop", stops, list)
    if len(stops) > MOST_STOPS:
        raise wrong("stop", f"has {len(stops)} strings; give at most {MOST_STOPS}")
    if any(not checked("stop", stop, str) for stop in stops):
        raise wrong("stop", "has an empty string; leave it out")
    return [*stops]


def _seed(fields: Fields) -> int | None:
    seed = fields.whole("seed", None, -(1 << 63), (1 << 64) - 1)
    return None if seed is None else int(seed % (1 << 64))


def _logit_bias(fields: Fields, vocab: int) -> dict[int, float] | None:
    given = fields.get("logit_bias", dict)
    bias = {}
    for token, value in (given or {}).items():
        if not (token.isascii() and token.isdigit()) or len(token) > 10 or int(token) >= vocab:
            raise wrong("logit_bias", f"has the key {token[:40]!r}, which is no token id of 0 .. {vocab - 1}")
        bias[int(token)] = checked("logit_bias", value, float)
        if abs(bias[int(token)]) > 100:
            raise wrong("logit_bias", "has a value outside -100 .. 100")
    return bias or None
