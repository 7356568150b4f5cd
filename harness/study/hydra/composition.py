"""Composition: Hydra's command line for a function of the composed study, which is composed once.

`hydra.main` composes the whole configuration twice for one study, the first time only to read from it whether it runs once
or several times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from engine.system.shipped import EXPERIMENTS

CONFIG = "config"  # name of the root of every study
PLAIN = ("overrides", "config_dir", "run")  # the options of a command that runs one study


def run_task(task: Callable[[DictConfig], None], argv: Sequence[str]) -> None:
    """Compose the study of `argv`, which is also that of `sys.argv`, and give it to `task`; with Hydra's other options, do
    what they say. Raises Hydra's errors."""
    main = hydra.main(version_base="1.3", config_path=str(EXPERIMENTS), config_name=CONFIG)(task)
    args = get_args_parser().parse_args(argv)
    asked = any(value for name, value in vars(args).items() if name not in PLAIN)
    if asked or any(override.startswith("hydra.mode=") for override in args.overrides):
        main()
        return
    path = create_config_search_path(str(EXPERIMENTS))
    if args.config_dir is not None:
        folder = f"file://{os.path.abspath(args.config_dir)}"
        path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    try:
        once = _Once.create_main_hydra2("search", path)
        mode = once.compose_config(CONFIG, args.overrides, RunMode.RUN, with_log_configuration=True).hydra.mode
        (once.multirun if mode == RunMode.MULTIRUN else once.run)(CONFIG, task, args.overrides)
    finally:
        GlobalHydra.instance().clear()


class _Once(Hydra):
    """Hydra, with one composition."""

    _composed: DictConfig | None = None

    def compose_config(self, *args: Any, **options: Any) -> DictConfig:
        if self._composed is None:
            self._composed = super().compose_config(*args, **options)
        return self._composed
