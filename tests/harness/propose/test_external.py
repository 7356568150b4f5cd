"""A proposer outside: real commands, good and bad, and what of their answers is let in."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import Knobs
from engine.system.shipped import ROOT
from harness.propose.external import Answer, ask_external, checked_answer, study_state
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.space.parse import space_from_config

SPACE = space_from_config(
    {
        "cache_gb": {"type": "float", "low": 0.005, "high": 0.04, "log": True},
        "read_threads": {"type": "int", "low": 1, "high": 8},
        "expert_bits": {"type": "ordinal", "values": [3, 4, 8]},
        "io_mode": "direct",
    },
    {},
)
LEGAL = {"cache_gb": (0.005, 0.06)}


def row(trial: int, speed: float | None, **knobs: Any) -> dict[str, Any]:
    figures = dict.fromkeys(OBJECTIVES, 1.0) | {"decode_tok_s": speed}
    given = {"trial": trial, "run": 0, "status": "ok", "origin": "sampler", "io_mode": "direct"}
    return {**dict.fromkeys(NAMES), **Knobs(cache_gb=0.01).as_dict(), **given, **figures, **knobs}


def request() -> dict[str, Any]:
    rows = [row(1, 5.0, read_threads=2, expert_bits=4), row(2, 9.0, read_threads=8, expert_bits=3), row(3, None)]
    return study_state("demo", OBJECTIVES, ["peak_memory_gb <= 8"], SPACE, LEGAL, rows, [1, 2], {"trials": 4})


def script(code: str, timeout_s: float = 10) -> Answer:
    return ask_external(f"{shlex.quote(sys.executable)} -S -c {shlex.quote(code)}", request(), timeout_s, SPACE, LEGAL)


def test_a_good_answer_is_taken_and_the_state_says_all_that_is_needed() -> None:
    answer = script(
        "import json, sys; s = json.load(sys.stdin)\n"
        "assert s['rows'][0]['knobs']['read_threads'] == 2 and s['rows'][2]['metrics']['decode_tok_s'] is None\n"
        "assert s['space']['cache_gb']['high'] == 0.04 and s['knobs']['read_threads']['text'] and s['front'] == [1, 2]\n"
        "print(json.dumps({'settings': [{'cache_gb': 0.05, 'read_threads': 3}], 'note': s['study'] + ' a\\nb',"
        "'changes': [{'kind': 'widen', 'knob': 'cache_gb', 'high': 0.06}]}))"
    )
    assert answer.refused == ()
    assert answer.note == "demo a b"
    assert [str(c) for c in answer.changes] == ["widen cache_gb: [0.005, 0.04] -> [0.005, 0.06]"]
    assert answer.settings[0].items() >= {"cache_gb": 0.05, "read_threads": 3, "io_mode": "direct"}.items()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("print('let me think')", "proposer: the answer is not JSON (Expecting value: line 1 column 1 (char 0)): let me"),
        ("print('{\"settings\": NaN}')", "proposer: the answer is not JSON (settings: NaN is not a JSON number)"),
        ("print([1])", "proposer: the answer is a list; give an object"),
        ("raise SystemExit('no key for the model')", "proposer: exit status 1: no key for the model"),
        ("import sys\nwhile True: sys.stdout.write('x' * 1_000_000)", "proposer: more than 1,000,000 bytes of output"),
        ("print(end='[' * 900_000)", "proposer: the answer is not JSON"),
    ],
)
def test_a_bad_answer_is_one_line(code: str, line: str) -> None:
    answer = script(code)
    assert (answer.settings, answer.changes) == ((), ())
    assert len(answer.refused) == 1
    assert answer.refused[0].startswith(line)
    assert "\n" not in answer.refused[0]


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    begun = time.monotonic()
    pid_file = str(tmp_path / "pid")
    code = f"p = subprocess.Popen(['sleep', '60']); open({pid_file!r}, 'w').write(str(p.pid))"
    answer = script(f"import subprocess, time; {code}; time.sleep(60)", timeout_s=1.0)
    assert answer.refused == ("proposer: no answer within 1 s",)
    assert time.monotonic() - begun < 20
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("command", "part"),
    [("no-such-command-here", "cannot be started"), ("a 'b", "cannot be split"), ("", "is empty; give a command")],
)
def test_a_command_that_cannot_run_is_one_line(command: str, part: str) -> None:
    answer = ask_external(command, request(), 5, SPACE, LEGAL)
    assert part in answer.refused[0]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"read_thread": 2}, "read_thread is not in the search space; did you mean read_threads"),
        ({"cache_gb": 0.5}, "cache_gb=0.5 is outside its search space (0.005 .. 0.04)"),
        ({"read_threads": 2.5}, "read_threads=2.5 is not a whole number"),
        ({"read_threads": True}, "is not a value of a knob"),
        ({"expert_bits": [4]}, "is not a value of a knob"),
        ({"expert_bits": "__import__('os')"}, "outside its search space (3, 4, 8)"),
        ({"io_mode": "buffered"}, "io_mode=buffered is fixed at direct"),
        ({"read_threads": None}, "outside its search space"),
    ],
)
def test_a_bad_setting_is_refused_with_its_reason_and_the_good_one_stays(setting: dict[str, Any], reason: str) -> None:
    answer = checked_answer({"settings": [setting, {"read_threads": 4, "io_mode": "direct"}]}, SPACE, LEGAL)
    assert [s["read_threads"] for s in answer.settings] == [4]
    assert len(answer.refused) == 1
    assert reason in answer.refused[0]


def test_a_bad_change_and_unknown_keys_are_refused() -> None:
    changes = [{"kind": "widen", "knob": "cache_gb", "high": 1}, {"kind": "fix", "knob": "expert_bits", "value": 4}, {}]
    answer = checked_answer({"changes": changes, "setting": []}, SPACE, LEGAL)
    assert [str(c) for c in answer.changes] == ["fix expert_bits: [3, 4, 8] -> 4"]
    assert "setting is not a key of an answer; did you mean settings" in answer.refused[0]
    assert "1 is outside this machine's limits 0.005 .. 0.06" in answer.refused[1]
    assert "change kind=None is unknown" in answer.refused[2]
    for odd in ({"settings": 3}, {"settings": [3]}, {"changes": {"kind": "fix"}}):
        assert "is not a list of objects" in checked_answer(odd, SPACE, LEGAL).refused[0]


def test_the_example_moves_one_knob_of_the_fastest_point() -> None:
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'experiments' / 'proposer_example.py'))}"
    answer = ask_external(command, request(), 20, SPACE, LEGAL)
    assert answer.refused == ()
    assert "trial 2" in answer.note
    assert answer.settings
    best = {"cache_gb": 0.01, "read_threads": 8, "expert_bits": 3, "io_mode": "direct"}
    assert all(sum(s[name] != best[name] for name in best) == 1 for s in answer.settings)
    empty = ask_external(command, json.loads(json.dumps(request() | {"front": []})), 20, SPACE, LEGAL)
    assert (empty.settings, empty.note) == ((), "no front yet")
