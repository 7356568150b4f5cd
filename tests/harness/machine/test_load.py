"""Machine load: cores that other processes keep busy, on a simulated machine and with real children."""

from __future__ import annotations

import os
import subprocess
import sys

from support import Machine, wait_for

from harness.machine.load import Beginning, CpuLoad, Meters, glance, look


def test_a_look_takes_time_and_a_glance_none() -> None:
    m = Machine(load=3.0)
    assert glance(m).load is None and m.time == 0.0
    assert round(look(m).load or 0, 6) == 3.0 and m.time == 0.5


def test_a_look_that_was_begun_takes_only_what_is_left() -> None:
    m = Machine(load=3.0)
    begun = Beginning(m)
    m.sleep(0.2)
    assert round(look(m, begun).load or 0, 6) == 3.0 and m.time == 0.5
    begun = Beginning(m)
    m.sleep(1.0)
    m.load = 7.0
    m.sleep(1.0)
    seen = look(m, begun)
    assert round(seen.load or 0, 6) == 5.0 and seen.seconds == 2.0 and m.time == 2.5
    m.sleep(11)
    assert round(look(m, begun).load or 0, 6) == 7.0 and m.time == 14.0  # too long ago


def test_the_mean_is_weighted_by_time() -> None:
    m = Machine(load=8.0)
    load = CpuLoad(m)
    assert load.mean() is None
    m.sleep(1)
    assert round(load.sample() or 0, 6) == 8.0
    m.load = 0.0
    m.sleep(3)
    assert load.sample() == 0.0 and round(load.mean() or 0, 6) == 2.0


def test_an_own_process_that_ended_uncounted_adds_no_load() -> None:
    m = Machine()
    load = CpuLoad(m)
    m.sleep(2)
    m.own -= 10
    assert load.sample() is None
    assert load.mean() is None


def test_own_processes_are_not_foreign() -> None:
    """A running child and an ended one count as own; with other roots they are foreign."""
    worker = "import os, time\nwhile time.process_time() < 0.3: pass"
    own, foreign = Meters(), Meters(os.getppid())
    foreign._own = lambda: set()  # type: ignore[method-assign]
    start, start_foreign = own.busy_s(), foreign.busy_s()
    subprocess.run([sys.executable, "-c", worker], check=True)
    end = own.busy_s()
    assert end[1] - start[1] >= 0.28
    assert end[0] - start[0] >= 0.25
    assert foreign.busy_s()[1] == start_foreign[1] == 0
    with subprocess.Popen([sys.executable, "-c", worker + "\ninput()"], stdin=subprocess.PIPE) as child:
        before = own.busy_s()[1]
        wait_for(lambda: own.busy_s()[1] - before >= 0.2)
        child.communicate(b"\n")
