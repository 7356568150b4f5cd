"""Guards of a run: every decision on a simulated machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Machine

from harness import ResultsError
from harness.machine.load import Beginning, look
from harness.machine.quiet import Quiet, Watch, check_disk, wait_until_quiet
from harness.results.columns import NAMES
from harness.schema import GuardsConfig

CONFIG = GuardsConfig(wait_s=60)


def quiet(m: Machine, config: GuardsConfig = CONFIG, **more: object) -> tuple[Quiet, list[str]]:
    notes: list[str] = []
    return wait_until_quiet(config, note=notes.append, meters=m, **more), notes  # type: ignore[arg-type]


def test_a_quiet_machine_is_not_waited_for() -> None:
    found, notes = quiet(Machine(load=3.9, temperature_c=60.0, power_source="ac"))
    assert (found.waited_s, found.reason, notes) == (0.0, None, [])
    assert found.seen.columns() == {
        "load_before": pytest.approx(3.9),
        "available_gb_before": 32.0,
        "thermal_state_before": None,
        "thermal_pressure_before": None,
        "temperature_c_before": 60.0,
        "power_source_before": "ac",
    }
    assert set(found.seen.columns()) < set(NAMES)


@pytest.mark.parametrize(
    ("m", "reason"),
    [
        (Machine(load=4.2), "other processes keep 4.2 of 8 cores busy, above 4 (guards.max_load)"),
        (Machine(available_gb=3.0), "3 GB of memory are available, below 3.2 (guards.min_free_memory_share=0.05)"),
        (Machine(thermal_state="serious"), "thermal state serious"),
        (Machine(thermal_state="critical"), "thermal state critical"),
        (Machine(memory_pressure="critical"), "memory pressure critical"),
        *(
            (Machine(thermal_state="nominal", thermal_pressure=level), f"thermal pressure {level}: the machine is throttled")
            for level in ("moderate", "heavy", "trapping", "sleeping")
        ),
        (
            Machine(available_gb=6, memory_pressure="normal", swap_used_bytes=97 * 10**8, swap_total_bytes=10**10),
            "swap is 97% full and 6 GB of memory are available; end other programs",
        ),
    ],
)
def test_after_the_wait_the_run_is_suspect(m: Machine, reason: str) -> None:
    found, notes = quiet(m)
    assert 57 <= found.waited_s <= 60
    assert found.reason == reason
    assert notes == [f"waiting for a quiet machine, 60 s at most: {reason}"]


def test_counts_that_grow_are_waited_for() -> None:
    for name, step, reason in (
        ("throttle_events", 1, "the processor is throttled"),
        ("swap_out_bytes", 2_000_000, "the machine swaps out 20 MB/s"),
    ):
        m = Machine(**{name: 5})
        m.script = [(0.1 * i, lambda m=m, i=i, n=name, s=step: m.set(**{n: 5 + i * s})) for i in range(100)]  # 10 s long
        found, notes = quiet(m)
        assert found.reason is None
        assert 7.5 <= found.waited_s <= 15
        assert notes[0].endswith(reason) and notes[-1] == f"quiet again after {found.waited_s:.0f} s"
    m = Machine(swap_out_bytes=0)
    begun = Beginning(m)
    m.sleep(3.0)
    m.set(swap_out_bytes=5_900_000)
    assert quiet(m, begun=begun)[0].reason is None and m.time == 3.0  # 2 MB/s, below the limit
    begun = Beginning(m)
    m.sleep(3.0)
    m.set(swap_out_bytes=15_000_000)
    m.script = [(m.time + 0.1, lambda: m.set(swap_out_bytes=18_000_000))]
    found, notes = quiet(m, begun=begun)
    assert found.waited_s and notes[0].endswith("the machine swaps out 6 MB/s")
    begun = Beginning(m)
    m.sleep(3.0)
    m.set(swap_out_bytes=33_000_000)
    before = m.time
    assert quiet(m, begun=begun) == (Quiet(0.0, None, look(m)), [])  # it is over, as a fresh look sees
    assert m.time - before == pytest.approx(1.0)
    steady = Machine(throttle_events=7, swap_out_bytes=10**9, swap_used_bytes=10**9)
    assert quiet(steady)[0].reason is None  # the counts are from before


def test_a_full_swap_with_memory_to_spare_and_nominal_pressure_are_no_reasons() -> None:
    assert quiet(Machine(available_gb=30, swap_used_bytes=10**9, swap_total_bytes=10**9))[0].reason is None
    assert quiet(Machine(available_gb=6, swap_used_bytes=10**9, swap_total_bytes=2 * 10**9))[0].reason is None
    assert quiet(Machine(available_gb=6, swap_used_bytes=0, swap_total_bytes=0))[0].reason is None
    assert quiet(Machine(thermal_state="fair", thermal_pressure="nominal"))[0].reason is None


def test_each_kind_of_reason_is_noted_once() -> None:
    m = Machine(load=8)
    m.script = [(5, lambda: setattr(m, "load", 7)), (20, lambda: (m.set(thermal_state="serious"))),
                (30, lambda: (m.set(thermal_state="fair"), setattr(m, "load", 0)))]  # fmt: skip
    found, notes = quiet(m)
    assert [note.partition(": ")[2].partition(" ")[0] for note in notes[:-1]] == ["other", "thermal"]
    assert 28 <= found.waited_s <= 35


def test_battery_stops_the_study_and_mains_power_continues_it() -> None:
    with pytest.raises(ResultsError, match=r"on battery .*wait_s=60.*connect mains power.*guards.allow_battery=true") as e:
        quiet(Machine(power_source="battery"))
    assert "\n" not in str(e.value)
    m = Machine(power_source="battery")
    m.script = [(20, lambda: m.set(power_source="ac"))]
    assert quiet(m)[0].reason is None
    assert quiet(Machine(power_source="battery"), GuardsConfig(allow_battery=True))[0].reason is None


def test_no_wait_takes_no_time_and_interrupted_ends_it() -> None:
    m = Machine(load=8, thermal_state="serious")
    found, _ = quiet(m, GuardsConfig(wait_s=0))
    assert (m.time, found.reason, found.seen.load) == (0.0, "thermal state serious", None)
    m = Machine(load=8)
    found, _ = quiet(m, interrupted=lambda: m.time > 10)
    assert 10 < found.waited_s < 14
    assert quiet(Machine(power_source="battery"), interrupted=lambda: True)[0].reason  # an interrupt is no error


def test_the_limit_of_load_is_configurable() -> None:
    assert quiet(Machine(load=1.0), GuardsConfig(max_load=0.5, wait_s=1))[0].reason
    assert quiet(Machine(load=7.0), GuardsConfig(max_load=7.5, wait_s=1))[0].reason is None


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    check_disk(CONFIG, tmp_path, Machine(free_disk_gb=1.01))
    with pytest.raises(ResultsError, match=r"0\.2 GB are free on .*guards\.min_disk_gb=1; all rows are saved: make room"):
        check_disk(CONFIG, tmp_path, Machine(free_disk_gb=0.2))
    check_disk(GuardsConfig(min_disk_gb=0), tmp_path)


def watched(m: Machine, seconds: float = 60, **figures: object) -> dict[str, object]:
    watch = Watch(CONFIG, quiet(Machine())[0], m)
    while m.time < seconds:
        m.sleep(0.1)
        watch.look()
    return watch.end({name: figures.get(name) for name in figures})


def test_a_run_on_a_quiet_machine_is_not_suspect() -> None:
    row = watched(Machine(load=2.5, throttle_events=3, swap_out_bytes=10**10, power_source="ac", thermal_state="fair"))
    assert row["load_during"] == pytest.approx(2.5)  # without the two cores of the search
    assert (row["suspect"], row["throttle_events"], row["swap_out_bytes"]) == (None, 0, 0)
    assert (row["load_before"], row["waited_s"], row["thermal_state"]) == (0.0, 0.0, "fair")
    assert set(row) < set(NAMES)


@pytest.mark.parametrize(
    ("during", "reason"),
    [
        ({"throttle_events": 4}, "heat: throttled 4 times"),
        ({"thermal_state": "serious"}, "heat: thermal state serious"),
        ({"thermal_pressure": "moderate"}, "heat: thermal pressure moderate"),
        ({"thermal_pressure": "heavy", "thermal_state": "fair"}, "heat: thermal pressure heavy"),
        ({"swap_out_bytes": 200_000_000, "memory_pressure": "normal"}, "swap: 200 MB swapped out, up to 10 MB/s"),
        ({"swap_out_bytes": 1_000_000}, None),
        (
            {"swap_out_bytes": 31_000_000, "swap_used_bytes": 94, "swap_total_bytes": 100},
            "swap: 31 MB swapped out into a swap that is 94% full",
        ),
        ({"swap_out_bytes": 31_000_000, "swap_used_bytes": 50, "swap_total_bytes": 100}, None),
        ({"power_source": "battery"}, "power: on battery"),
        ({"memory_pressure": "critical"}, "memory: pressure critical"),
        ({"memory_pressure": "warning"}, None),
    ],
)
def test_what_happened_during_a_run(during: dict[str, object], reason: str | None) -> None:
    start = {
        "throttle_events": 0, "swap_out_bytes": 0, "thermal_state": "nominal", "thermal_pressure": "nominal",
        "power_source": "ac",
    }  # fmt: skip
    m = Machine(**start)
    m.script = [(25, lambda: m.set(**during))]
    assert watched(m)["suspect"] == reason
    gone = Machine(**start)  # a state that passes is noticed; counts are compared at the end
    gone.script = [(15, lambda: gone.set(**during)), (35, lambda: gone.set(**start))]
    counted = {"throttle_events", "swap_out_bytes"} & set(during)
    assert watched(gone)["suspect"] == (None if counted else reason)


def test_a_look_begins_with_the_last_sample_of_the_run_before() -> None:
    """A run ends 0.7 s after a sample: nothing is left to wait. Where a state is expensive, the look begins at its end."""
    for cheap, waits, load in ((True, 0.0, 7.0), (False, 0.5, 3.0)):
        m = Machine(load=7.0)
        m.cheap_state = cheap
        watch = Watch(CONFIG, quiet(Machine())[0], m)
        while m.time < 5.7:
            m.sleep(0.1)
            watch.look()
        m.load = 3.0
        begun, end = watch.beginning(), m.time
        seen = look(m, begun)
        assert m.time - end == pytest.approx(waits) and seen.load == pytest.approx(load)
    for during, after in ((3.0, 6.0), (6.0, 3.0)):  # a run that takes the cores hides the load of others until its end
        m.load, m.cheap_state = during, True
        watch = Watch(CONFIG, quiet(Machine())[0], m)
        m.sleep(1.0)
        watch.look()
        m.sleep(0.5)
        begun, m.load = watch.beginning(), after
        m.sleep(0.25)
        seen = look(m, begun)
        assert seen.load == pytest.approx(max(after, (0.5 * during + 0.25 * after) / 0.75)) and seen.seconds == 0.75
    m.load = 0.0
    watch = Watch(CONFIG, quiet(Machine())[0], m)
    m.sleep(1.2)
    watch.look()
    m.sleep(3.0)  # the search stood still: the sample is old
    end = m.time
    look(m, watch.beginning())
    assert m.time - end == pytest.approx(0.5)


def test_swapping_is_judged_by_its_rate_and_by_its_share_of_the_memory() -> None:
    def long_run(total: int, hours: float) -> dict[str, object]:
        m = Machine(swap_out_bytes=0)
        steps = int(hours * 60)
        m.script = [(60.0 * i, lambda i=i: m.set(swap_out_bytes=total * i // steps)) for i in range(1, steps + 1)]
        watch = Watch(CONFIG, quiet(Machine())[0], m)
        while m.time < hours * 3600:
            m.sleep(5)
            watch.look()
        return watch.end({})

    slow = long_run(300_000_000, 1)  # 0.08 MB/s
    assert slow["suspect"] is None and slow["run_swap_out_bytes"] == 300_000_000
    assert slow["swap_out_mb_s"] == pytest.approx(0.25, abs=0.1)  # a minute's worth within one sample
    assert str(long_run(800_000_000, 1)["suspect"]).startswith("swap: 800 MB swapped out")  # above 1 % of 64 GB
    assert str(long_run(60_000_000, 0.05)["suspect"]).startswith("swap: 60 MB swapped out, up to 1 MB/s")
    unknown = watched(Machine())
    assert unknown["swap_out_mb_s"] is unknown["run_swap_out_bytes"] is None


def test_the_load_of_a_run_is_its_mean_and_the_engine_takes_precedence() -> None:
    m = Machine(load=8)
    m.script = [(45, lambda: setattr(m, "load", 0))]
    row = watched(m)
    assert row["load_during"] == pytest.approx(6, abs=0.1)
    assert row["suspect"] == "load: other processes kept 6.0 of 8 cores busy, above 4"
    assert watched(Machine(), throttle_events=2)["suspect"] == "heat: throttled 2 times"
    watch = Watch(CONFIG, quiet(Machine(load=8))[0], m)
    m.sleep(1)
    assert str(watch.end({})["suspect"]) == "before: other processes keep 8.0 of 8 cores busy, above 4 (guards.max_load)"
