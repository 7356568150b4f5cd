"""Options that several commands share: the model, the evaluation texts, and the knobs."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError, KnobError
from engine.generation.sampling import Sampling
from engine.knobs import IO_MODES, PREFETCH, REMOVED, WORDS, Knobs, removed
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI

VALUES = {"io_mode": IO_MODES, "prefetch": PREFETCH}  # knobs whose value is one of some words


def add_model(parser: argparse.ArgumentParser, *, positional: bool = False, text: str = "checkpoint folder") -> None:
    """`--model`. With `positional`, the folder is also accepted as an argument without the option, as earlier versions had
    it."""
    parser.add_argument("--model", type=Path, metavar="DIR", help=f"{text} (default: kimi_mini)")
    if positional:
        parser.add_argument("path", type=Path, nargs="?", help=argparse.SUPPRESS)


def model_of(args: argparse.Namespace) -> Path:
    """The checkpoint's folder. Raises `HeadraceError` if it is given twice."""
    path = getattr(args, "path", None)
    if path is not None and args.model is not None:
        raise HeadraceError(f"--model {args.model} and {path} are two checkpoints; give one, with --model")
    return path or args.model or KIMI_MINI


def add_eval_texts(parser: argparse.ArgumentParser) -> None:
    """`--eval-texts`; `--judge` and `--text` are the names of earlier versions."""
    text = "evaluation texts: YAML, or any text file (default: headrace_v1.yaml)"
    parser.add_argument("--eval-texts", type=Path, metavar="FILE", default=EVALUATION_TEXTS, help=text)
    parser.add_argument("--judge", "--text", dest="eval_texts", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_knobs(parser: argparse.ArgumentParser, names: Collection[str] | None = None, *, samples: bool = False) -> None:
    """Every knob as an option, or only those named. A command that `samples` refuses `--top-k`, which has two meanings
    there."""
    group = parser.add_argument_group("knobs")
    for f in dataclasses.fields(Knobs):
        if names is not None and f.name not in names:
            continue
        option, text = option_of(f.name), f.metadata["text"]
        if isinstance(f.default, bool):
            group.add_argument(option, dest=f.name, action=argparse.BooleanOptionalAction, help=text)
            continue
        words = WORDS.get(f.name)
        kind = number_or(words) if words else {"str": str, "int": int, "float": float}[str(f.type).split(" |")[0]]
        default = "" if f.default is None else f" (default: {f.default if kind is str else format(f.default, 'g')})"
        metavar = f"{{{','.join(VALUES[f.name])}}}" if f.name in VALUES else "FILE" if kind is str else "N"
        group.add_argument(option, dest=f.name, type=kind, metavar=metavar, help=text + default)
    if samples:
        parser.add_argument("--top-k", nargs="?", action=_Ambiguous, help=argparse.SUPPRESS)
    elif names is None or "top_k" in names:
        parser.add_argument("--top-k", type=int, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    if names is None:
        for name in (name for name in REMOVED if "=" not in name):
            parser.add_argument(f"--{name.replace('_', '-')}", nargs="?", action=_Refused, help=argparse.SUPPRESS)


class _Refused(argparse.Action):
    """The option of a removed knob: raises `KnobError` with the reason of its removal."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        raise KnobError(removed(self.dest))


class _Ambiguous(argparse.Action):
    """`--top-k` of a command that samples: raises `HeadraceError` with the two options that it may mean."""

    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> None:
        raise HeadraceError(
            "--top-k has two meanings here; write --sample-top-k N to choose from the N most probable tokens, or "
            "--knob-top-k N for N routed experts per token"
        )


def option_of(knob: str) -> str:
    """The option of a knob, which every command accepts."""
    return "--knob-top-k" if knob == "top_k" else f"--{knob.replace('_', '-')}"


def add_sampling(parser: argparse.ArgumentParser, max_tokens: int = Sampling.max_tokens) -> None:
    """The options of `Sampling`, by mlx-lm's names."""
    group = parser.add_argument_group("sampling")
    text = "generated at most, in tokens (default: %(default)s)"
    group.add_argument("--max-tokens", "-m", type=int, default=max_tokens, metavar="N", help=text)
    text = "0 (default) takes the most probable token"
    group.add_argument("--temp", "--temperature", type=float, default=Sampling.temperature, metavar="X", help=text)
    text = "choose from the fewest tokens with this share of the probability (default: 1, all)"
    group.add_argument("--top-p", type=float, default=Sampling.top_p, metavar="X", help=text)
    text = "leave out tokens below this share of the most probable one's probability (default: 0, none)"
    group.add_argument("--min-p", type=float, default=Sampling.min_p, metavar="X", help=text)
    text = "choose from the N most probable tokens (default: 0, all); mlx-lm's --top-k"
    group.add_argument("--sample-top-k", type=int, default=Sampling.top_k, metavar="N", help=text)
    text = "divide the logits of recent tokens by this factor, such as 1.1 (default: off)"
    group.add_argument("--repetition-penalty", type=float, metavar="X", help=text)
    text = "recent tokens that the penalty applies to (default: %(default)s)"
    size = Sampling.repetition_context_size
    group.add_argument("--repetition-context-size", type=int, default=size, metavar="N", help=text)
    text = "end before this text; may be repeated"
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help=text)
    text = "of sampling; the same seed gives the same text (default: %(default)s)"
    group.add_argument("--seed", type=int, default=Sampling.seed, metavar="N", help=text)


def sampling_of(args: argparse.Namespace) -> Sampling:
    """The sampling of a command line. Raises `HeadraceError`."""
    same = ("max_tokens", "top_p", "min_p", "repetition_penalty", "repetition_context_size", "seed")
    given = {name: getattr(args, name) for name in same}
    return Sampling(temperature=args.temp, top_k=args.sample_top_k, stop=tuple(args.stop), **given)


def knobs_of(args: argparse.Namespace) -> Knobs:
    """The knobs of a command line. Raises `KnobError`."""
    return Knobs(**knobs_given(args))


def knobs_given(args: argparse.Namespace) -> dict[str, Any]:
    """The knobs that the command line names, with their values."""
    return {name: value for name in Knobs.names() if (value := getattr(args, name, None)) is not None}


def number_or(words: dict[str, int]) -> Callable[[str], int]:
    """An option's type that takes a whole number or one of `words`."""

    def number(text: str) -> int:
        return words[text] if text in words else int(text)

    return number


def positive(text: str) -> int:
    """An option's type that takes a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def refuse_ignored(command: str, names: Sequence[str], why: str) -> None:
    """Raise `HeadraceError` for the first of the options that a command would ignore."""
    if names:
        raise HeadraceError(f"--{names[0].replace('_', '-')} has no effect: {command} {why}; leave it out")
