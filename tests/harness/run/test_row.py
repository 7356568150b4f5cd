"""Row of a run: seconds saved, reused quality, and texts without paths of this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.results.columns import NAMES
from harness.results.metrics import QUALITY
from harness.run.row import copy_quality, portable, saved_s


def row(status: str = "ok", **more: Any) -> dict[str, Any]:
    return {**dict.fromkeys(NAMES), "status": status, "origin": "sampler", **more}


def test_saved_seconds() -> None:
    before = [row(wall_s=10.0, score_s=3.0), row(wall_s=12.0, score_s=5.0)]
    assert saved_s(row("infeasible", wall_s=0.0), before) == saved_s(row("dominated", wall_s=0.0), before) == 11.0
    assert saved_s(row("infeasible", wall_s=1.0), before) is None  # it ran until the engine refused the setting
    assert saved_s(row("stopped", wall_s=4.0), before) == 7.0
    assert saved_s(row("stopped", wall_s=40.0), before) == 0.0
    reused = row(wall_s=1.0)
    copy_quality(reused, row(trial=3, perplexity=4.5))
    assert (reused["quality_from_trial"], reused["perplexity"]) == (3, 4.5) and set(QUALITY) < set(reused)
    assert saved_s(reused, before) == 4.0
    assert saved_s(reused, []) is saved_s(row("stopped", wall_s=4.0), []) is saved_s(row(wall_s=1.0), before) is None


def test_texts_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    plan: Any = SimpleNamespace(checkpoint=tmp_path / "model", model="mine", folder=tmp_path / "results", name="demo")
    text = f"{tmp_path}/model/shard {tmp_path}/results/logs {Path.home()}/x"
    assert portable(plan, text) == "mine/shard demo/logs ~/x"
    assert portable(plan, None) is None
