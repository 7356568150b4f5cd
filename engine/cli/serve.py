"""The command `serve`: options, the order of binding, loading and serving, and the end of the process.

python -m engine serve --cache-gb 0.02
python -m engine serve --model ~/models/Kimi-K2.5 --cache-gb 40 --port 8081
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from engine.serve.options import ServeOptions, short_name
from engine.system.strict_json import from_json

from .arguments.opening import add_trust_code, load_with_tokenizer
from .arguments.options import add_knobs, add_model, add_setting, knobs_of, model_of, positive, setting_of

SAMPLING = (  # option, field of a request and its type; `--top-k` is the knob
    ("--temp --temperature", "temperature", float),
    ("--top-p", "top_p", float),
    ("--sample-top-k", "top_k", int),
    ("--min-p", "min_p", float),
)
KEY_VARIABLE = "HEADRACE_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `serve`."""
    add_model(parser)
    add_trust_code(parser)
    default = ServeOptions()
    add = parser.add_argument
    add("--host", default=default.host, metavar="HOST", help="listen at this address (default: %(default)s)")
    add("--port", type=int, default=default.port, metavar="N", help="and port; 0: any free one (default: %(default)s)")
    text = f"clients must send this key; required unless the host is loopback (default: the variable {KEY_VARIABLE})"
    add("--api-key", metavar="KEY", help=text)
    add("--name", metavar="NAME", help="name of the model for clients (default: that of its folder)")
    add("--cors", action="append", default=[], metavar="ORIGIN", help="allow web pages of this origin; * allows all")
    text = "requests that compute at once, in one batch (default: %(default)s)"
    add("--parallel", type=positive, default=default.parallel, metavar="N", help=text)
    text = "requests that wait; past them clients get the status 429 (default: %(default)s)"
    add("--queue", type=int, default=default.queue, metavar="N", help=text)
    text = "tokens of a prompt and its answer at most (default: what the model and the memory allow)"
    add("--context", type=positive, metavar="N", help=text)
    text = "tokens of an answer, for requests without max_tokens; cut to what fits (default: %(default)s)"
    add("--max-tokens", type=positive, default=default.max_tokens, metavar="N", help=text)
    for option, name, kind in SAMPLING:
        text = f"for requests without {name} (default: %(default)g)"
        add(*option.split(), dest=f"sample_{name}", type=kind, default=getattr(default, name), metavar="X", help=text)
    text = "arguments of the chat template as a JSON object, for all requests"
    add("--chat-template-args", type=_object, default={}, metavar="JSON", help=text)
    text = "memory for prompts that were seen before, in 10^9 bytes (default: %(default)g)"
    add("--prompt-cache-gb", type=float, default=default.prompt_cache_gb, metavar="N", help=text)
    add("--prompt-cache-dir", type=Path, metavar="DIR", help="keep them in this folder as well, across restarts")
    text = "size of that folder, in 10^9 bytes (default: %(default)g)"
    add("--prompt-cache-disk-gb", type=float, default=default.prompt_cache_disk_gb, metavar="N", help=text)
    text = "largest body of a request, in 10^6 bytes (default: %(default)g)"
    add("--max-body-mb", type=float, default=default.max_body_mb, metavar="N", help=text)
    text = "seconds for running requests after SIGTERM or Ctrl-C (default: %(default)g)"
    add("--grace", dest="grace_s", type=float, default=default.grace_s, metavar="N", help=text)
    add_setting(parser)
    add_knobs(parser, samples=True)


def serve(args: argparse.Namespace) -> int:
    """Serve a model to clients of the OpenAI API, until SIGTERM or Ctrl-C."""
    options, model, knobs = options_of(args), model_of(args), knobs_of(args)
    if not model.is_dir():  # before mlx-lm's import, which takes about a second
        raise HeadraceError(f"{model} is no folder; give --model DIR, the folder of a checkpoint")
    from engine.serve.server import Server

    setting = setting_of(args)
    name = setting.model.get("name") if setting is not None and args.model is None else None
    server = Server(options, name or short_name(model))
    server.stop_on_signals(_end)
    with load_with_tokenizer(args, model, knobs, template=True, tools=True) as engine:
        server.serve(engine)
        server.announce(engine)
        server.wait()
        failed = server.service.state == "failed"
        server.stop()
    _end(int(failed))
    return 0


def options_of(args: argparse.Namespace) -> ServeOptions:
    """The server's options of a command line. Raises `HeadraceError` for a value that is not possible."""
    sampling = [name for _, name, _ in SAMPLING]
    names = {name: f"sample_{name}" if name in sampling else name for name in ServeOptions.__dataclass_fields__}
    values: dict[str, Any] = {name: getattr(args, source) for name, source in names.items()}
    key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE)
    options = ServeOptions(**{**values, "cors": tuple(args.cors), "api_key": key})
    options.address()
    return options


def _object(text: str) -> dict[str, Any]:
    value = from_json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("it must be a JSON object")
    return value


def _end(status: int = 0) -> None:
    """End the process without its exit handlers: MLX 0.32's abort it with status -6 in about half of all runs after a
    generation thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
