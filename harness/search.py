"""Search the best streaming settings of a study.

    python -m harness.search
    python -m harness.search study=demo budget.trials=40 results_dir=/tmp/results

Hydra composes the study from `experiments/` and `search_spaces/`; `--help` shows all there is to choose from. The same
command again goes on where it stopped. Ctrl-C ends after the run that goes on, a second one at once. Exit status: 0, the
budget is spent (trials or hours); 1, the study ended itself (ten failures of one cause); 2, a user's mistake or a resource
that is missing (one line on stderr); 130, stopped by the user.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and `main` says it in one line

import hydra
from omegaconf import DictConfig, OmegaConf

from engine import HeadraceError
from harness import ROOT, ConfigError, StudyStopped
from harness.study.hydra_errors import accepted, choices, explain

_status = 0  # the worst of the studies of this command; Hydra's return value is lost in a multirun


def task(config: DictConfig) -> None:
    """One composed study. Errors are printed and not raised, for Hydra would add lines of its own."""
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

    study = study_from_config(config)
    stop = Stop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.now = stop.soon or number == signal.SIGTERM
        stop.soon = True
        if not stop.now:
            watcher.note("stopping after this run; Ctrl-C again stops at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with display(study) as watcher:
            rows, progress = run_study(study, watcher, stop, lambda line: print(line, file=sys.stderr))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    report(study.folder, rows)
    if stop.soon:
        print(f"stopped at {progress}; the same command goes on")
    elif progress.trials_done < progress.trials_wanted:
        print(f"budget.hours={study.config['budget']['hours']:g} is spent, at {progress}; the same command goes on")
    else:
        print(f"done; for more: budget.trials={study.trials * 2}")
    return 130 if stop.soon else 0


def fail(error: HeadraceError) -> int:
    """Say what ended the command; returns the exit status for it."""
    print(error, file=sys.stderr)
    return 1 if isinstance(error, StudyStopped) else 2


def main() -> int:
    """The command line; returns the exit status."""
    try:
        if not (ROOT / "experiments" / "config.yaml").exists():
            raise ConfigError(f"{ROOT} has no experiments/; install from a checkout: pip install -e .")
        from harness.schema import register

        register()
        sys.argv[1:] = accepted(sys.argv[1:])
        OmegaConf.register_new_resolver("headrace_knobs", _knob_help, replace=True)
        OmegaConf.register_new_resolver("headrace_choices", _choice_help, replace=True)
        hydra.main(version_base="1.3", config_path=str(ROOT / "experiments"), config_name="config")(task)()
    except HeadraceError as e:
        return fail(e)
    except KeyboardInterrupt:  # while it is composed, or while the report is drawn
        print("stopped; all rows are on the disk, and the same command goes on", file=sys.stderr)
        return 130
    except Exception as e:
        line = explain(e)
        if line is None:
            raise
        return fail(ConfigError(line))
    return _status


def _choice_help() -> str:
    """The groups for `--help`, with the files in them."""
    return "\n".join(f"{group}: {', '.join(options)}" for group, options in choices().items())


def _knob_help() -> str:
    """The knobs for `--help`, from the engine's own table."""
    import dataclasses

    from engine import Knobs

    return "\n".join(f"{f.name:16} {f.metadata['text']}" for f in dataclasses.fields(Knobs))


if __name__ == "__main__":
    sys.exit(main())
