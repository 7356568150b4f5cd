"""Options that several commands share: the model, the evaluation texts, the knobs, and the setting file they may come from.

An option of the command line overrides the setting file. Each override, and each difference between the setting's machine,
versions and model and those here, is one line on stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint.places.find import find_checkpoint, hub_name, in_places
from engine.errors import HeadraceError, KnobError
from engine.generation.sampling import Sampling
from engine.knobs import BACKENDS, DEFAULTS, IO_MODES, PREFETCH, REMOVED, WORDS, Knobs, default_text, removed
from engine.model.environment.mlx_environment import RESTARTED, restart_with
from engine.setting.setting_file import Setting, read_setting
from engine.setting.study_setting import PICK, setting_from
from engine.setting.texts import texts_of
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI

VALUES = {"io_mode": IO_MODES, "prefetch": PREFETCH}  # knobs whose value is one of some words


def add_model(
    parser: argparse.ArgumentParser,
    *,
    positional: bool = False,
    text: str = "checkpoint folder, or ORG/NAME of a downloaded model",
) -> None:
    """`--model`. With `positional`, the folder is also accepted as an argument without the option, as earlier versions had
    it."""
    parser.add_argument("--model", type=Path, metavar="MODEL", help=f"{text} (default: kimi_mini)")
    if positional:
        parser.add_argument("path", type=Path, nargs="?", help=argparse.SUPPRESS)


def model_of(args: argparse.Namespace, *, any_file: bool = False) -> Path:
    """The checkpoint's folder: the one given, else the setting's, else kimi_mini. `any_file`: or a file that is given.
    Raises `HeadraceError` if it is not there."""
    setting = setting_of(args)
    given = _given_model(args)
    if given is None:
        return KIMI_MINI if setting is None else _model_of_setting(setting)
    return given if any_file and given.is_file() else find_checkpoint(given)


def _given_model(args: argparse.Namespace) -> Path | None:
    path: Path | None = getattr(args, "path", None)
    if path is not None and args.model is not None:
        raise HeadraceError(f"--model {args.model} and {path} are two checkpoints; give one, with --model")
    return path or args.model


def _model_of_setting(setting: Setting) -> Path:
    named = setting.model.get("path")
    if named is None:
        raise HeadraceError(f"{setting.source} names no model; give its folder with --model")
    path = setting.find(named)
    if not path.exists() and (name := hub_name(path)) and (downloaded := in_places(name)):
        return downloaded
    if not path.exists():
        raise HeadraceError(f"{setting.source}: the checkpoint {named} is not there; give its folder with --model")
    return path


def add_setting(parser: argparse.ArgumentParser) -> None:
    """`--config`, `--from`, `--pick` and `--trial`: model and knobs of a setting file or a study, for `model_of` and
    `knobs_of`."""
    group = parser.add_argument_group("setting (other options override it)")
    group.add_argument("--config", type=Path, metavar="FILE", help="setting file: best/NAME.yaml of a study")
    text = "a study's setting; a study is its folder, or its name under results/"
    group.add_argument("--from", dest="from_study", metavar="STUDY", help=text)
    text = f"with --from: a recommended setting, default or reference (default: {PICK})"
    group.add_argument("--pick", metavar="NAME", help=text)
    group.add_argument("--trial", type=int, metavar="N", help="with --from: the setting of this trial")


def setting_of(args: argparse.Namespace) -> Setting | None:
    """The setting of `add_setting`'s options, None without them; read once. Prints its origin, what overrides it and what
    differs here. Raises `HeadraceError`."""
    if "setting" not in args:
        args.setting = None if getattr(args, "config", None) is None and not _names_study(args) else _read(args)
    setting: Setting | None = args.setting
    return setting


def _names_study(args: argparse.Namespace) -> bool:
    study, pick, trial = (getattr(args, name, None) for name in ("from_study", "pick", "trial"))
    for option, value in (("--pick", pick), ("--trial", trial)):
        if study is None and value is not None:
            raise HeadraceError(f"{option} {value} needs a study; give it with --from STUDY")
    if pick is not None and trial is not None:
        raise HeadraceError(f"--pick {pick} and --trial {trial} are two settings; give one of them")
    return study is not None


def _read(args: argparse.Namespace) -> Setting:
    from engine.setting.differences import differences

    if args.config is not None and _names_study(args):
        raise HeadraceError(f"--config {args.config} and --from {args.from_study} are two settings; give one of them")
    by_study = args.config is None
    setting = setting_from(args.from_study, args.pick, args.trial) if by_study else read_setting(args.config)
    if setting.engine:
        other = next(iter(setting.engine.values()))
        remedy = f"run: {setting.commands['run']}" if "run" in setting.commands else "use that"
        raise HeadraceError(f"{setting.source} is for the engine {other}, not for this one; {remedy}")
    sure = "" if setting.confirmed is None else ", confirmed" if setting.confirmed else ", not confirmed"
    notes = [f"{setting.title}{sure}, from {setting.source}"]
    if setting.edited:
        notes.append(f"{setting.source} was edited: its figures may be those of another setting")
    given = _given_model(args)
    if given is not None and setting.model:
        notes.append(f"--model {given} overrides {setting.model.get('path')} of the setting")
    own = setting.for_use(search=True)
    notes += [
        f"{option_of(name)} overrides {own.shown(name)} of the setting"
        for name, value in knobs_given(args).items()
        if getattr(own, name) != value
    ]
    model = given or _model_of_setting(setting)
    notes += differences(setting, model)
    if "prefill_chunk" not in knobs_given(args) and (note := _other_chunk(setting, own, model)):
        notes.append(note)
    for note in notes if not os.environ.get(RESTARTED) else ():  # printed before the restart
        print(f"note: {note}", file=sys.stderr)
    return setting


def _other_chunk(setting: Setting, knobs: Knobs, model: Path) -> str:
    """A line if `prefill_chunk=auto` stands for another chunk than where the setting was measured; else empty."""
    then = setting.machine.get("prefill_chunk")
    if knobs.prefill_chunk or not isinstance(then, int):
        return ""
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.plan.footprint import chunk_for

    here = chunk_for(Checkpoint.open(model), knobs)
    if here.tokens == then:
        return ""
    return f"prefill_chunk=auto was {then} in the study and is {here} here; give --prefill-chunk {then} to run as it did"


def add_eval_texts(parser: argparse.ArgumentParser, *, of_setting: bool = False) -> None:
    """`--eval-texts`; `--judge` and `--text` are the names of earlier versions. `of_setting`: for `eval_texts_of`."""
    default = "those of the setting, or headrace_v1.yaml" if of_setting else "headrace_v1.yaml"
    text = f"evaluation texts: YAML, or any text file (default: {default})"
    given = None if of_setting else EVALUATION_TEXTS
    parser.add_argument("--eval-texts", type=Path, metavar="FILE", default=given, help=text)
    parser.add_argument("--judge", "--text", dest="eval_texts", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def eval_texts_of(args: argparse.Namespace) -> Path:
    """The evaluation texts: those given, else the setting's, else the shipped ones. Raises `HeadraceError`."""
    setting = setting_of(args)
    given: Path | None = args.eval_texts
    return given or (EVALUATION_TEXTS if setting is None else texts_of(setting))


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
        default = "" if f.default is None else f" (default: {default_text(f.name)})"
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


def knobs_of(args: argparse.Namespace, *, search: bool = False) -> Knobs:
    """The knobs of a command line and its setting; `search`: including the setting's limits for measuring alone. Raises
    `KnobError`."""
    setting, given = setting_of(args), knobs_given(args)
    knobs = Knobs(**given) if setting is None else _for_here(setting.for_use(given, search=search), given)
    if any(getattr(knobs, name) not in (None, DEFAULTS[name]) for name in BACKENDS):
        from engine.model.environment import backend_knobs

        backend_knobs.refuse_elsewhere(knobs)
        restart_with(vars(knobs))
    return knobs


def _for_here(knobs: Knobs, given: Collection[str]) -> Knobs:
    """The knobs without those of a setting that exist only on another backend, each left out with a note."""
    if all(getattr(knobs, name) in (None, DEFAULTS[name]) for name in BACKENDS):
        return knobs
    from engine.model.environment import backend_knobs

    left_out = {name: DEFAULTS[name] for name in backend_knobs.without_effect(vars(knobs)) if name not in given}
    for name in left_out:
        backend = backend_knobs.backend()
        print(f"note: {knobs.shown(name)} of the setting is left out: MLX computes on {backend} here", file=sys.stderr)
    return Knobs.from_mapping({**knobs.as_dict(), **left_out})


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
