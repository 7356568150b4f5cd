"""Rehearsal of a study: `rehearse=true` searches the lossless knobs on random weights in the model's full shape.

It changes the composed configuration, so the rest of a study does not know of it: the model is the store that a
rehearsal has written, metrics of quality and lossy knobs are left out, and the study has a folder of its own. The store's
mark is in the model's name, hence in every row and report.

The prompts are short. A prompt of 150 tokens would read most of the model's experts before the first timed token, and with
forced routing a text means nothing. A study of `prefill_tok_s` or `ttft_ms` keeps its evaluation texts.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.knobs import LOSSY
from engine.packing.random_store import is_complete, usual_folder
from engine.shapes.library import shape
from engine.system.shipped import REHEARSAL_TEXTS
from harness import ConfigError
from harness.results.metrics import QUALITY

from .constraints import parse
from .engines import is_own

SUFFIX = "_rehearsal"  # of the study's folder
OF_ROUTERS = ("prefetch", "prefetch_depth", "prefetch_width", "prefetch_cap_mb")  # predict a choice that is not used
LEFT_OUT = (*LOSSY, *OF_ROUTERS)
OF_PROMPTS = ("prefill_tok_s", "ttft_ms")  # metrics
DIRECT = {"io_mode": "direct"}  # the page cache would hold a shared record for several layers at once


def rehearsed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the rehearsal of a study. Raises `ConfigError` if it names no shape, its store is not written, or
    it holds a knob that a rehearsal does not have."""
    c = copy.deepcopy(dict(config))
    if not is_own(c["engine"]):
        raise ConfigError("rehearse=true runs this project's engine only; leave out engine.module and engine.command")
    held = [name for name in LEFT_OUT if c["knobs"].get(name) not in (None, "off")]
    if held:
        raise ConfigError(
            f"rehearse=true: knobs.{held[0]}={c['knobs'][held[0]]} has no meaning with random weights and forced routing; "
            "leave it out"
        )
    c["model"] |= {"path": str(_store(c["model"])), "name": None, "hub": "", "trust_code": False}
    c["objectives"] = [name for name in c["objectives"] if name not in QUALITY]
    c["constraints"] = [text for text in c["constraints"] if parse(text).metric not in QUALITY]
    c["study"] |= {
        "name": c["study"]["name"] + SUFFIX,
        "anchors": [{k: v for k, v in anchor.items() if k not in LEFT_OUT} for anchor in c["study"]["anchors"]],
    }
    metrics = [*c["objectives"], *(parse(text).metric for text in c["constraints"])]
    if not any(name in OF_PROMPTS for name in metrics):
        c["quality"] |= {"text": str(REHEARSAL_TEXTS), "most": None}
    c["search_space"], c["knobs"] = lossless(c["search_space"]), DIRECT | c["knobs"]
    return c


def lossless(space: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a search space that a rehearsal searches."""
    return {name: entry for name, entry in space.items() if name not in (*LEFT_OUT, *DIRECT)}


def _store(model: Mapping[str, Any]) -> Path:
    """The folder of the rehearsal: `model.path` if it is one, else where a rehearsal is written."""
    given = Path(model["path"]).expanduser().absolute()
    if read_rehearsal(given) is not None:
        return given
    if model["shape"] is None:
        raise ConfigError(
            "rehearse=true needs the model's shape; give model.shape=NAME (python -m engine shapes lists them), or the "
            "folder of a rehearsal with model.path=DIR"
        )
    folder = usual_folder(shape(model["shape"]).name)
    if not is_complete(folder):
        raise ConfigError(
            f"rehearse=true: the rehearsal of {model['shape']} is not written; run: "
            f"headrace rehearse {model['shape']} --write"
        )
    return folder
