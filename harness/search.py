"""The search: finds the best streaming settings of a study, and shows its Pareto front.

    python -m harness.search
    python -m harness.search study=demo budget.trials=40 results_dir=/tmp/results

Hydra composes the study from shipped files (`experiments/`, `search_spaces/`) and the user's own; `--help` lists every
choice, key and knob. The same command resumes a study. Ctrl-C stops after the current run, a second Ctrl-C at once. Exit
status: 0, the budget is spent (trials or hours); 1, the study ended itself (ten failures with one cause); 2, a user's
mistake or a missing resource (one line on stderr); 130, stopped by the user.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors, and `main` prints each in one line

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from engine import HeadraceError, __version__
from engine.cli.program import guarded
from engine.system.meters.translated import refuse_translated
from engine.system.shipped import EXPERIMENTS
from harness import ConfigError, StudyStopped
from harness.paths import own_file
from harness.study.hydra.hydra_errors import explain
from harness.study.hydra.overrides import accepted, config_dir

PROGRAM = "python -m harness.search"
_status = 0  # the highest exit status of the command's studies; Hydra drops return values in a multirun


def task(config: DictConfig) -> None:
    """Run one composed study. Prints errors instead of raising them, because Hydra would add lines."""
    global _status
    try:
        _status = max(_status, run(config))
    except HeadraceError as e:
        _status = max(_status, fail(e))


def run(config: DictConfig) -> int:
    """Run a composed study and show its front; returns the exit status."""
    from harness.session.coordinator import Stop
    from harness.session.session import run_study
    from harness.show.live import display
    from harness.show.report import report
    from harness.study.study import study_from_config

    _find_own_files(config)
    study = study_from_config(config)
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.now = stop.soon or number != signal.SIGINT
        stop.soon = True
        if not stop.now:
            watcher.note("stopping after this run; Ctrl-C again stops at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with display(study) as watcher:
            rows, progress = run_study(study, watcher, stop, lambda line: print(line, file=sys.stderr))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    report(study.folder, rows)
    if stop.soon:
        print(f"stopped at {progress}; the same command resumes")
    elif progress.trials_done < progress.trials_wanted:
        print(f"budget.hours={study.config['budget']['hours']:g} is spent, at {progress}; the same command resumes")
    else:
        print(f"done; for more: budget.trials={study.trials * 2}")
    return 130 if stop.soon else 0


def fail(error: HeadraceError) -> int:
    """Print the error that ended the command; returns its exit status."""
    print(error, file=sys.stderr)
    return 1 if isinstance(error, StudyStopped) else 2


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    """Run the command line, by default that of `sys.argv`, which Hydra reads; returns the exit status. `program` is the
    command's name in its help."""
    return guarded(lambda: _search(argv, program))


def _search(argv: Sequence[str] | None, program: str) -> int:
    if argv is not None:
        sys.argv[1:] = argv
    if "--version" in sys.argv[1:]:
        print(f"headrace {__version__}")
        return 0
    try:
        refuse_translated()
        folder = config_dir(sys.argv[1:])
        _register_help(program, folder)
        if {"-h", "--help"} & {*sys.argv[1:]}:  # Hydra, too, prints the template; it takes 4 s to list choices besides
            print(OmegaConf.load(EXPERIMENTS / "config.yaml").hydra.help.template)
            return 0
        from harness.schema import register

        register(folder)
        sys.argv[1:] = accepted(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name="config")(task)()
    except HeadraceError as e:
        return fail(e)
    except KeyboardInterrupt:  # during composition or the report
        print("stopped; all rows are on the disk, and the same command resumes", file=sys.stderr)
        return 130
    except Exception as e:
        line = explain(e)
        if line is None:
            raise
        return fail(ConfigError(line))
    return _status


def _find_own_files(config: DictConfig) -> None:
    """Replace the names of prompt files by the paths where they are found."""
    folder = config_dir(sys.argv[1:])
    with open_dict(config):
        for key in ("text", "json_prompts"):
            if config.quality.get(key):
                config.quality[key] = str(own_file(config.quality[key], folder))


def _register_help(program: str, folder: str | None) -> None:
    """The parts of `--help` that are made from the schema, the knobs and the folders."""
    from harness.study.hydra import search_help

    for name, part in (
        ("program", lambda: program),
        ("choices", lambda: search_help.choices_text(folder)),
        ("keys", search_help.keys_text),
        ("knobs", search_help.knobs_text),
    ):
        OmegaConf.register_new_resolver(f"headrace_{name}", part, replace=True)


if __name__ == "__main__":
    sys.exit(main())
