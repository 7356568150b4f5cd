"""Forecast the speed of a model on a machine, before it is downloaded.

    python -m harness.forecast kimi_k2_5 device=m2max_96gb
    python -m harness.forecast qwen3_5_397b_a17b device=m5max_128gb --json
    python -m harness.forecast experiments/kimi_mini/checkpoint

MODEL is a published shape (`headrace shapes` lists them), a checkpoint's folder, ORG/NAME that is downloaded, or a packed
store. Without device=NAME it is this machine, whose disk and layers are measured for some seconds. device.FIGURE=VALUE
replaces a figure, such as device.disk_gbps=5.3. Exit status: 0, or 2 for a mistake (one line on stderr).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.cli.program import guarded, make_parser
from engine.errors import HeadraceError
from engine.system.strict_json import to_json


def main(arguments: Sequence[str], program: str = "python -m harness.forecast") -> int:
    """Print one forecast; returns the exit status."""
    return guarded(lambda: _forecast(arguments, program))


def _forecast(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("model", metavar="MODEL", help="shape, folder, ORG/NAME or store")
    parser.add_argument("device", nargs="*", metavar="device=NAME", help="machine, and figures of it: device.FIGURE=VALUE")
    parser.add_argument("--cache-gb", metavar="GB,GB", help="sizes of the cache (default: five that fit)")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="the model's routing trace, for its own hit rates")
    parser.add_argument(
        "--study", metavar="STUDY", help="a study of this model, for the time of a trial beside its timed tokens"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="save a plot (PNG and SVG)")
    parser.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="on the disk to measure (default: here)")
    parser.add_argument("--json", action="store_true", help="print the forecast as JSON")
    given = parser.parse_args(arguments)
    words = _words(given.device)
    sizes = None if given.cache_gb is None else _sizes(given.cache_gb)

    from engine.model.backend import compiles_first
    from harness.machine.device import AUTO

    from .forecast import as_dict, forecast
    from .locality import own_world, worlds_of
    from .machine.figures import device_from, machine
    from .target import target
    from .text import report, verdict
    from .trial import found_here, of_study

    device = device_from(words)
    model = target(given.model, given.trace)
    worlds = worlds_of(model.experts, model.top_k)
    if model.trace is not None:
        worlds = own_world(model.trace, model.layers, model.experts, model.top_k)
    if device.name == AUTO and (line := compiles_first()):
        print(f"note: {line}", file=sys.stderr)
    at = machine(device, model, given.folder.expanduser())
    here = None if at.probed is None else found_here(given.model, model)
    besides = here if given.study is None else of_study(given.study, model)
    found = forecast(model, at, worlds, sizes, besides)
    print(to_json({**as_dict(found), "verdict": verdict(found)}) if given.json else report(found))
    if given.plot is not None:
        from .plot import plot

        plot(found, given.plot.expanduser())
    return 0


def _words(given: Sequence[str]) -> dict[str, str]:
    words = dict(word.partition("=")[::2] for word in given)
    for name in words:
        if name != "device" and not name.startswith("device."):
            raise HeadraceError(f"{name} is neither device=NAME nor device.FIGURE=VALUE; give one model, then the device")
    return words


def _sizes(text: str) -> list[float]:
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = [0.0]
    if not all(0 < size < float("inf") for size in sizes):
        raise HeadraceError(f"--cache-gb {text} is no list of positive numbers; write it as 10,20,40")
    return sizes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
