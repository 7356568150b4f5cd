"""Trial: seconds of a run beside its timed tokens, as the rows of a study of this model have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from harness.analysis.runs.hours import parts
from harness.machine.identity import host
from harness.paths import find_study, folder_name, results_folder
from harness.results.rows import read_rows

from .target import Target


@dataclass(frozen=True)
class Besides:
    """Means over the complete runs of a study: seconds of a run and of the time before it, without the timed tokens, and
    the number of timed tokens."""

    study: str
    runs: int
    seconds: float
    tokens: float

    def __str__(self) -> str:
        many = f"{self.runs} run{'' if self.runs == 1 else 's'}"
        return f"{self.seconds:.3g} s beside {self.tokens:.0f} timed tokens, measured in {many} of {self.study}"


def besides(study: str, rows: Sequence[Mapping[str, Any]]) -> Besides | None:
    """The means of rows; None without a complete run whose parts are recorded."""
    complete = [row for row in rows if row["status"] == "ok" and row["session"] and row["origin"] != "reference"]
    timed = [row for row in complete if row["timed_s"] and row["decode_tokens"]]
    found = [(sum(parts(row).values()) - row["timed_s"], row["decode_tokens"]) for row in timed]
    if not found:
        return None
    seconds, tokens = (sum(some) / len(found) for some in zip(*found, strict=True))
    return Besides(study, len(found), seconds, tokens)


def of_study(name: str, model: Target) -> Besides:
    """The means of the study `name`. Raises `HeadraceError` if there is none, or for another model or rows without parts."""
    folder = find_study(name)
    rows = read_rows(folder)
    other = sorted({str(row["architecture"]) for row in rows if row["architecture"]} - _types(model))
    if other:
        raise HeadraceError(f"--study {name} is of {', '.join(other)}, not of {model.name}; give a study of this model")
    found = besides(folder.name, rows)
    if found is None:
        raise HeadraceError(f"--study {name} has no complete run with its time by part; run it again, or leave --study out")
    return found


def found_here(what: str, model: Target) -> Besides | None:
    """The means of study=auto of the model `what` on this machine; None if it has not run here."""
    folder: Path = results_folder() / folder_name(what)
    if not folder.is_dir():
        return None
    rows = [row for row in read_rows(folder) if row["machine"] == host() and row["architecture"] in _types(model)]
    return besides(folder.name, rows)


def _types(model: Target) -> set[str]:
    """The model types of a configuration and of the text model in it."""
    config = model.shape.config
    return {str(some["model_type"]) for some in (config, config.get("text_config", {})) if "model_type" in some}
