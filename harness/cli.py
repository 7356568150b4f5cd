"""Console script `headrace`: the commands of both packages under one name.

    headrace search study=demo
    headrace report demo
    headrace compare before after
    headrace generate --prompt "The query planner" --cache-gb 0.02
    headrace bench engine decode
    headrace bench search samplers

The commands of the search are modules of `harness` as well, and those of the
engine commands of `python -m engine`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from engine import __version__
from engine.cli.program import guarded
from engine.errors import did_you_mean

SEARCH = {
    "search": "search the best settings of a study",
    "status": "show progress, front and health of a study",
    "report": "show recommended settings, front and plots of a study",
    "best": "print a study's setting as a file to use",
    "merge": "put the rows of several studies together",
    "compare": "compare recommended settings and fronts of several studies",
    "rehearse": "run a model's shape with random weights before its download",
    "doctor": "examine this machine: meters, system calls, disk, host",
    "forecast": "forecast a model's speed before it is downloaded",
}
ENGINE = {
    "generate": "print generated text, then speed and memory",
    "chat": "converse with a model",
    "measure": "measure one setting on the evaluation texts",
    "serve": "serve a model to clients of the OpenAI API",
    "quality": "measure the loss of quality against the reference",
    "inspect": "print a checkpoint's sizes under the knobs",
    "plan": "print each layer's bits; save or draw the plan",
    "pack": "pack a checkpoint's experts into a store",
    "profile": "take the routing profile of a model",
    "replay": "print what a setting reads on a recorded routing trace",
    "knobs": "print the table of all knobs",
    "shapes": "list the shapes of published models, with their sizes",
}
BENCH = {
    "bench engine": "benchmarks of the engine: reads, decoding, quality, packing",
    "bench search": "benchmarks of the search: samplers, storage, faults",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    return guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name = " ".join(words[: 2 if words[:1] == ["bench"] else 1])
    rest = words[len(name.split()) :]
    if name in SEARCH:
        own = ("best", "compare", "doctor", "forecast", "rehearse")
        module = f"harness.{name}.__main__" if name in own else f"harness.{name}"
        return import_module(module).main(rest, f"headrace {name}")
    if name in ENGINE:
        return import_module("engine.__main__").main(words, "headrace")
    if name in BENCH:
        module = "engine.bench.command" if name == "bench engine" else "harness.bench.__main__"
        return import_module(module).main(rest, f"headrace {name}")
    if name == "--version":
        print(f"headrace {__version__}")
        return 0
    if name in ("-h", "--help", "help") or name in ("bench -h", "bench --help"):
        print(_help(BENCH if words[0] == "bench" else SEARCH | ENGINE | BENCH))
        return 0
    if words[:1] == ["bench"]:
        print("error: bench needs a package: headrace bench engine NAME, or headrace bench search NAME", file=sys.stderr)
        return 2
    names = [*SEARCH, *ENGINE, "bench"]
    wrong = f"{name} is not a command; {did_you_mean(name, names)}" if words else f"name a command: {', '.join(names)}"
    print(f"error: {wrong}; see headrace --help", file=sys.stderr)
    return 2


def _help(commands: dict[str, str]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:{width}}  {text}" for name, text in commands.items()]
    about = (__doc__ or "").partition("\n\n")[2].rstrip()
    usage = "usage: headrace [-h] [--version] COMMAND ..."
    return "\n".join([usage, "", about, "", "commands:", *lines, "", "headrace COMMAND --help describes a command."])


if __name__ == "__main__":
    sys.exit(main())
