"""Children: one waits with its imports done, serves one request, and leaves nothing behind, however its search ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import ROOT, wait_for

from harness.run.children import FEW, MOST, NEXT_LOG, Children
from harness.run.supervise import Outcome, run_child


@pytest.fixture
def children(place: Path) -> Iterator[Children]:
    """Children of the fake engine, whose request is in place."""
    request = place / "running.json"
    request.write_text(json.dumps({
        "engine": "fake_engine", "checkpoint": str(place / "checkpoint"), "judge": str(place / "judge.txt"), "knobs": {},
    }))  # fmt: skip
    with contextlib.closing(Children(request, "fake_engine")) as some:
        yield some


def run(children: Children, name: str) -> tuple[Outcome, int]:
    """The outcome of a run, and its process."""
    pids: list[int] = []
    given: dict[str, Any] = {"timeout_s": 60, "hang_s": None, "limit_gb": 9, "needed": ["decode_tok_s"]}
    log = children.request.parent / "logs" / name
    outcome = run_child(children, log, **given, interrupted=lambda: False, started=pids.append)
    return outcome, pids[0]


def waiting(children: Children) -> int:
    """The process that serves the next run."""
    return children._waiting[0].process.pid


def test_each_run_has_the_process_and_the_log_that_waited_for_it(children: Children, place: Path) -> None:
    """A run prepares the next child at its end. One that ended while it waited is replaced."""
    children.prepare({})
    first, logs = waiting(children), place / "logs"
    children.prepare({})
    assert waiting(children) == first
    outcome, pid = run(children, "one")
    assert (outcome.status, pid) == ("ok", first) and outcome.figures["decode_tok_s"] > 0
    second = waiting(children)
    assert second != first and not psutil.pid_exists(first) and os.getpgid(second) == second
    assert sorted(p.name for p in logs.iterdir()) == [NEXT_LOG.format(2), "one"]
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: psutil.Process(second).status() == psutil.STATUS_ZOMBIE)
    outcome, pid = run(children, "two")
    assert outcome.status == "ok" and pid not in (first, second)
    assert len((place / "checkpoint" / "runs.log").read_text().splitlines()) == 2  # a child that waits runs nothing
    last = waiting(children)
    children.close()
    assert not psutil.pid_exists(last)
    assert sorted(p.name for p in logs.iterdir()) == ["one", "two"]


def test_more_children_wait_one_after_the_other_within_the_memory(children: Children) -> None:
    available = [100.0]
    children._available = lambda: available[0]
    children.prepare({})
    children.prepare_more()  # the imports of the first one are not done
    assert len(children._waiting) == 1
    for number in range(2, MOST + 2):
        wait_for(lambda: all(one.ready for one in children._waiting))
        children.prepare_more()
        assert len(children._waiting) == min(number, MOST)
    wait_for(lambda: all(one.ready for one in children._waiting))
    available[0] = 0.1
    pids = [one.process.pid for one in children._waiting]
    for number, pid in enumerate(pids[: MOST - FEW]):
        assert run(children, f"log{number}")[1] == pid
    children.prepare_more()  # too little memory for another one
    assert [one.process.pid for one in children._waiting] == pids[MOST - FEW :]
    children.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_no_child_imports_while_a_run_is_timed(children: Children) -> None:
    """Of two that still import, one takes the run and the other is ended. A ready one comes first."""
    children._add({})
    children._add({})
    first, second = (one.process.pid for one in children._waiting)
    child = children.begin(children.request.with_name("log"), {})
    assert child.pid == first and not children._waiting and not psutil.pid_exists(second)
    child.communicate(timeout=60)
    children._add({})
    children._add({})
    importing, ready = children._waiting
    ready_read, ready_write = os.pipe()
    os.close(ready_write)  # as the end of the imports does
    held, hold = os.pipe()
    children._waiting = [dataclasses.replace(importing, imported=held), dataclasses.replace(ready, imported=ready_read)]
    child = children.begin(children.request.with_name("log"), {})
    assert child.pid == ready.process.pid and not children._waiting and not psutil.pid_exists(importing.process.pid)
    child.communicate(timeout=60)
    for handle in (hold, importing.imported, ready.imported):
        os.close(handle)


def test_few_wait_where_settings_need_different_variables(children: Children) -> None:
    children._available = lambda: 100.0
    children.prepare({})
    children.prepare({"mlx_ops_per_buffer": 20})
    for _ in range(FEW + 1):
        wait_for(lambda: all(one.ready for one in children._waiting))
        children.prepare_more()
    assert len(children._waiting) == FEW


def test_a_child_with_other_variables_of_mlx_is_replaced(children: Children) -> None:
    children.prepare({})
    plain = waiting(children)
    children.prepare({"mlx_ops_per_buffer": 20})
    fits = waiting(children)
    assert fits != plain and not psutil.pid_exists(plain)
    wait_for(lambda: psutil.Process(fits).environ().get("MLX_MAX_OPS_PER_BUFFER") == "20")  # exec fills it a moment later
    child = children.begin(children.request.with_name("log"), {})
    assert child.pid != fits and not psutil.pid_exists(fits)
    child.communicate(timeout=60)


def test_a_start_that_fails_costs_no_result(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run before has ended well; the next one reports what is wrong."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(subprocess, "Popen", fail)
    children.prepare()
    with pytest.raises(OSError, match="No space left"):
        children.begin(children.request.with_name("log"), {})


SEARCH = """
import sys, time
from pathlib import Path
from harness.run.children import Children
children = Children(Path(sys.argv[1]), "fake_engine")
children.prepare({})
print(children._waiting[0].process.pid, flush=True)
time.sleep(600)
"""


def test_a_killed_search_leaves_no_child(children: Children) -> None:
    command = [sys.executable, "-c", SEARCH, str(children.request)]
    search = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ})
    assert search.stdout is not None
    pid = int(search.stdout.readline())
    search.kill()
    search.wait()
    search.stdout.close()
    wait_for(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
