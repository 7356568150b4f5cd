"""Offline: jobs that load a model of their own and store the result in the user's cache folder.

    python -m engine.cli.offline profile|routing|reference < request.json

Other parts start it as a child process (`engine.system.user_cache.compute_apart`), so that the model does not raise the peak
memory of the process that needs the result. A request names the checkpoint and whether its own
code may run, and, for routing and reference, the texts.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import engine.tokenizer.without_torch  # noqa: F401 - before mlx-lm
from engine.checkpoint.checkpoint import Checkpoint
from engine.engine import Engine, load
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.measure.protocol import Protocol
from engine.plan.ceiling import routing_file
from engine.plan.footprint import weights_of
from engine.quality.json_prompts import JsonPrompts
from engine.quality.reference import reference_file, reference_knobs, take_reference
from engine.routing.profile import CALIBRATION, Profile, profile_file
from engine.system.strict_json import from_json
from engine.system.user_cache import store_in_cache
from engine.tokenizer.open import open_tokenizer

from .program import guarded


def take_profile(checkpoint: Checkpoint) -> Path:
    """Measure the routing profile on the calibration text with the smallest cache, store it, and return its file."""
    file = profile_file(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.parquet"
        knobs = Knobs(cache_gb=weights_of(checkpoint, Knobs()).one_token_gb)
        with _load(checkpoint, knobs) as engine, engine.trace(trace):
            engine.logits(engine.encode(CALIBRATION.read_text(encoding="utf-8")))
        profile = Profile.of_trace(trace, checkpoint)
    content = io.BytesIO()
    np.savez(content, uses=profile.uses)
    store_in_cache(file, content.getvalue())
    return file


def take_routing(checkpoint: Checkpoint, judge: Judge, protocol: Protocol, knobs: Knobs | None = None) -> bytes:
    """Return the content of `routing_file`: the experts of every timed token under `knobs`, by default the reference's."""
    knobs = knobs or reference_knobs(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.parquet"
        with _load(checkpoint, knobs) as engine, engine.trace(trace):
            chunk, prompts = engine.chunk.tokens, [len(engine.encode(text.prompt)) for text in judge.texts]
            engine.measure(judge, Protocol(warm_up_tokens=0, timed_tokens=protocol.timed_tokens, score=False))
        rows = pd.read_parquet(trace, columns=["token", "phase", "layer", "expert"])
    decoded = rows[rows["phase"] == "decode"].sort_values(["token", "layer"], kind="stable")
    tokens = decoded["token"].unique()
    starts = np.flatnonzero(np.diff(tokens, prepend=-2) > 1)  # the first decoded token after each prompt
    content = io.BytesIO()
    np.savez_compressed(
        content,
        experts=decoded["expert"].to_numpy(np.int16).reshape(len(tokens), len(checkpoint.layers), -1),
        texts=np.diff(starts, append=len(tokens)),
        chunk=chunk,
        longest_prompt=max(prompts),
    )
    return content.getvalue()


def _load(checkpoint: Checkpoint, knobs: Knobs) -> Engine:
    """The engine, with the tokenizer opened first, because a wrong one ends the job."""
    opened = open_tokenizer(checkpoint.path, trust_code=checkpoint.trust_code)
    return load(checkpoint.path, knobs, trust_code=checkpoint.trust_code, tokenizer=opened.tokenizer)


def run(job: str, request: dict[str, Any]) -> Path:
    """Run one job and return the file in the cache folder that holds its result. Raises `HeadraceError`."""
    checkpoint = Checkpoint.open(request["checkpoint"], trust_code=request.get("trust_code", False))
    if job == "profile":
        return take_profile(checkpoint)
    judge = Judge.from_lists(request["texts"])
    if job == "routing":
        protocol = Protocol(timed_tokens=request["timed_tokens"])
        file = routing_file(checkpoint, judge, protocol)
        store_in_cache(file, take_routing(checkpoint, judge, protocol))
        return file
    prompts = None
    if request["prompts"]:
        max_tokens, pairs = request["prompts"]
        prompts = JsonPrompts(max_tokens, tuple((examples, text) for examples, text in pairs))
    file = reference_file(checkpoint, judge, prompts)
    with _load(checkpoint, reference_knobs(checkpoint)) as engine:
        store_in_cache(file, take_reference(engine, judge, prompts).to_bytes())
    return file


def main(argv: list[str] | None = None) -> int:
    """Run the job named on the command line with the request on stdin; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m engine.cli.offline", description=str(__doc__).splitlines()[0])
    parser.add_argument("job", choices=("profile", "routing", "reference"))
    job = parser.parse_args(argv).job
    return guarded(lambda: print(run(job, from_json(sys.stdin.read()))))


if __name__ == "__main__":
    sys.exit(main())
