"""Parser: the commands of the engine and their options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engine.cli import chat, commands, replay, text
from engine.cli import serve as serving
from engine.cli.program import add_command
from engine.knobs import LOSSY
from engine.measure.protocol import PAGE_CACHE, PREFILL, STATES, Protocol
from engine.system.shipped import JSON_PROMPTS

from .opening import add_trust_code
from .options import add_eval_texts, add_knobs, add_model, add_setting, positive


def add_commands(parsers: Any) -> None:
    """Add the commands and their options to the sub-parsers of a parser."""
    text.add_arguments(add_command(parsers, "generate", text.generate))
    chat.add_arguments(add_command(parsers, "chat", chat.chat))
    _measure(add_command(parsers, "measure", commands.measure))
    _quality(add_command(parsers, "quality", commands.quality))
    serving.add_arguments(add_command(parsers, "serve", serving.serve))
    inspect = add_command(parsers, "inspect", commands.inspect)
    add_model(inspect)
    inspect.add_argument(
        "--context", type=int, default=512, metavar="N", help="tokens of the longest text, with its answer (default: 512)"
    )
    add_knobs(inspect)
    _plan(add_command(parsers, "plan", commands.plan))
    _pack(add_command(parsers, "pack", commands.pack))
    profile = add_command(parsers, "profile", commands.profile)
    add_model(profile)
    add_trust_code(profile)
    add_command(parsers, "knobs", commands.knobs)
    replay.add_arguments(add_command(parsers, "replay", replay.replay))
    listed = add_command(parsers, "shapes", commands.shapes)
    listed.add_argument("shape", nargs="?", metavar="SHAPE", help="describe this one (default: list all)")


def _measure(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_trust_code(parser)
    add_eval_texts(parser, of_setting=True)
    parser.add_argument("--by-layer", action="store_true", help="print hits, reads and bytes of each layer first")
    text = f"decoded before the clock starts (default: the setting's, or {Protocol.warm_up_tokens})"
    parser.add_argument("--warm-up-tokens", type=int, metavar="N", help=text)
    parser.add_argument(
        "--timed-tokens", type=int, metavar="N", help="decoded while the clock runs (default: the setting's, or all)"
    )
    text = "before loading: drop the checkpoint's files (cold), read them through (warm), or neither (as_is, the default)"
    metavar = f"{{{','.join(PAGE_CACHE)}}}"
    parser.add_argument("--page-cache", metavar=metavar, help=text)
    text = "prompts: compute them (real, the default), or read those kept by an earlier run and keep the rest (restored)"
    parser.add_argument("--prefill", metavar=f"{{{','.join(PREFILL)}}}", help=text)
    text = (
        "experts' cache when the clock starts: as the prompt leaves it (prefilled, the default), as after a long generation"
    )
    metavar = f"{{{','.join(STATES)}}}"
    parser.add_argument("--state", metavar=metavar, help=f"{text} (steady), or empty (cold)")
    _trace_out(parser)
    add_setting(parser)
    add_knobs(parser)


def _quality(parser: argparse.ArgumentParser) -> None:
    add_model(parser, positional=True)
    add_trust_code(parser)
    add_eval_texts(parser, of_setting=True)
    text = "compare with this checkpoint (default: the model itself, resident)"
    parser.add_argument("--reference", type=Path, metavar="DIR", help=text)
    text = "prompts whose answers are JSON: YAML, or none (default: json_v1.yaml)"
    parser.add_argument("--json-prompts", default=JSON_PROMPTS, metavar="FILE", help=text)
    add_setting(parser)
    add_knobs(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
    add_model(parser, positional=True)
    add_trust_code(parser)
    text = "the budget as average bits, instead of hot_share"
    parser.add_argument("--average-bits", type=float, metavar="X", help=text)
    text = "routing trace to count uses in (Parquet; default: a profile of the calibration text)"
    parser.add_argument("--trace", type=Path, metavar="FILE", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the plan to this Parquet file, for bits_plan")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a heat map into this PNG file")
    add_knobs(parser, LOSSY)


def _pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, metavar="DIR", help="checkpoint folder")
    parser.add_argument("folders", type=Path, nargs="*", metavar="STORE", help="folder of the store")
    text = "bits of the precisions, each twice the one before (default: those of the checkpoint)"
    parser.add_argument("--levels", type=_levels, metavar="N,N", help=text)
    parser.add_argument("--workers", type=positive, metavar="N", help="threads that pack (default: one for each core)")
    parser.add_argument("--verify", action="store_true", help="read all records and compare their checksums")


def _trace_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace-out", type=Path, metavar="FILE", help="write the run's routing to this Parquet file")
    text = "with --trace-out: also what the routers of the next N layers predict, for replays with prefetch"
    parser.add_argument("--trace-ahead", type=positive, metavar="N", help=text)
    text = "with --trace-ahead: experts of a prediction, as multiples of top-k (default: 1)"
    parser.add_argument("--trace-widths", type=float, nargs="+", metavar="X", help=text)


def _levels(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
