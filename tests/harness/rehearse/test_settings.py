"""Tests of a rehearsal's settings: cache sizes that fit, and one process for each."""

from __future__ import annotations

import pytest
from rehearsals import write
from stores import one_line

from engine import HeadraceError, footprint
from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import Knobs
from harness.rehearse import settings as module
from harness.rehearse.settings import NAMES, run, settings


class Unknown:
    """No forecasts."""

    def before(self, knobs: Knobs) -> None:
        del knobs


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write(tmp_path_factory.mktemp("rehearsal") / "r"))


def test_sizes_fit_into_memory_and_reads_are_direct(source: Checkpoint) -> None:
    sizes = footprint(source)
    made = settings(source, {}, None, None, [1], 64)
    assert made[0].cache_gb == pytest.approx(sizes.all_experts_gb, abs=1e-3) and len(made) >= 1
    assert made[-1].cache_gb == sizes.one_token_gb and made[-1].io_mode == "direct"
    two = settings(source, {"io_mode": "buffered"}, [0.5, 0.4], None, [1, 0], 64)
    assert [(k.sync_window, k.io_mode) for k in two] == [(1, "buffered"), (0, "buffered")] * 2
    assert two[0].cache_gb == pytest.approx(sizes.all_experts_gb / 2)
    assert [k.cache_gb for k in settings(source, {}, None, [sizes.all_experts_gb * 0.6], [1], 64)] == [
        sizes.all_experts_gb * 0.6
    ]


@pytest.mark.parametrize(
    ("cache_gb", "usable", "match"),
    [
        ([1e-6], 64, r"--cache-gb 1e-06 is below one token's experts \(.* GB for kimi_k25 \(rehearsal"),
        (
            None,
            1e-3,
            r"needs .* GB with one token's experts cached .*, above 85% of the 0.001 GB of memory here; give --cache-gb",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(source: Checkpoint, cache_gb: list[float] | None, usable: float, match: str) -> None:
    with pytest.raises(HeadraceError, match=match) as e:
        settings(source, {}, None, cache_gb, [1], usable)
    one_line(e)


def test_lossy_knobs_and_predictions_of_routers_are_no_options() -> None:
    assert "read_threads" in NAMES and not {"prefetch", "expert_bits", "cold_drop", "top_k", "cache_gb"} & {*NAMES}


def test_a_run_that_fails_is_one_line(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD", "engine.no_such_module")
    told: list[str] = []
    with pytest.raises(
        HeadraceError, match=r"the rehearsal with cache_gb=0\.\d+ could not be computed: .*no_such_module"
    ) as e:
        list(run(str(source.path), settings(source, {}, [0.5], None, [1], 64), {}, Unknown(), told.append))  # type: ignore[arg-type]
    one_line(e)
    assert told == [f"1 of 1: {settings(source, {}, [0.5], None, [1], 64)[0].shown('cache_gb')}, sync_window=1"]
