"""`rehearse=true`: a study on random weights, of lossless knobs alone, whose every row says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rehearsals import write
from stores import one_line

from engine import HeadraceError
from engine.knobs import LOSSY
from engine.packing.random_store import usual_folder
from engine.system.shipped import EVALUATION_TEXTS, EXPERIMENTS
from harness.run.worker import measure
from harness.schema import register
from harness.study.study import Study, study_from_config

Make = Callable[..., Path]


def study(place: Path, *overrides: str) -> Study:
    register()
    with initialize_config_dir(str(EXPERIMENTS), version_base="1.3"):
        return study_from_config(compose("config", ["rehearse=true", f"results_dir={place / 'results'}", *overrides]))


def test_a_rehearsed_study_says_so_in_every_row(place: Path) -> None:
    path = write(place / "r")
    found = study(place, "study=auto", f"model.path={path}", "study.name=mine")
    assert found.model == "kimi_k25 (rehearsal: random weights)" and found.model in found.headline
    assert found.name == "mine_rehearsal" and found.space.fixed["io_mode"] == "direct"
    request = {
        "checkpoint": str(path), "judge": str(EVALUATION_TEXTS), "engine": "engine",
        "knobs": {"cache_gb": found.bounds["all_experts"] / 2},
        "protocol": {"timed_tokens": 4, "warm_up_tokens": 1, "score": False},
    }  # fmt: skip
    figures = measure(request)["figures"]
    assert figures["mode"].endswith("rehearsal: random weights") and figures["perplexity"] is None
    assert 0 < figures["hit_rate"] < 1 and figures["decode_tokens"] == 4


def test_prompts_are_short_unless_they_are_measured(place: Path) -> None:
    path = write(place / "r")
    found = study(place, "study=auto", f"model.path={path}")
    assert found.judge_name == "rehearsal_v1" and max(len(text.prompt) for text in found.judge.texts) < 5
    kept = study(place, "study=auto", f"model.path={path}", "objectives=[decode_tok_s,ttft_ms]")
    assert kept.judge_name == "headrace_v1"


def test_only_lossless_knobs_are_searched(place: Path) -> None:
    write(usual_folder("kimi_k2_5"))
    found = study(place, "study=kimi_m2max", "device=auto")
    assert found.name == "kimi_m2max_rehearsal" and found.checkpoint == usual_folder("kimi_k2_5")
    searched = found.space.as_dict()
    assert {"cache_gb", "read_threads"} <= searched.keys() and not {*LOSSY, "prefetch", "io_mode"} & searched.keys()
    assert list(found.objectives) == ["decode_tok_s", "peak_memory_gb"] and not found.constraints and not found.scored


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        (["study=demo"], r"rehearse=true needs the model's shape; give model\.shape=NAME"),
        (
            ["study=demo", "model.shape=kimi_k3"],
            r"the rehearsal of kimi_k3 is not written; run: headrace rehearse kimi_k3 --write",
        ),
        (["study=demo", "model.shape=kimi_k33"], r"shape kimi_k33 is unknown; did you mean kimi_k3"),
        (["study=demo", "knobs.prefetch=stale_gate"], r"knobs\.prefetch=stale_gate has no meaning with random weights"),
        (["study=demo", "engine.module=x"], r"rehearse=true runs this project's engine only"),
    ],
)
def test_what_cannot_be_rehearsed_is_one_line(place: Path, overrides: list[str], match: str) -> None:
    with pytest.raises(HeadraceError, match=re.compile(match)) as e:
        study(place, *overrides)
    one_line(e)
