"""Knobs refuse values that are wrong or without effect; evaluation texts and memory counters."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import Judge, JudgeError, KnobError, Knobs
from engine.__main__ import main
from engine.knobs import REMOVED
from engine.measure.judge import METRIC_VERSION
from engine.system.memory import _linux_peak, _macos_peak


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache_gb": 0}, "cache_gb=0 is out of range: it must be above 0"),
        ({"cache_gb": "much"}, "cache_gb='much' is not a number"),
        ({"cache_gb": True}, "cache_gb=True is not a number"),
        ({"cache_gb": 1, "evict_half_life": -1}, "evict_half_life=-1 is out of range"),
        ({"cache_gb": 1, "prefetch_depth": -1}, "prefetch_depth=-1 is out of range"),
        ({"cache_gb": 1, "prefetch_depth": 2}, "prefetch_depth=2 has no effect with prefetch=off"),
        ({"cache_gb": 1, "prefetch": "oracle"}, "prefetch=oracle is unknown; choose one of"),
        (
            {"cache_gb": 1, "prefetch": "stale_gate", "sync_window": 4},
            "prefetch=stale_gate has no effect with sync_window=4",
        ),
        ({"cache_gb": 1, "prefetch": "stale_gate", "prefetch_width": 0}, "prefetch_width=0 is out of range"),
        ({"cache_gb": 1, "pinned_share": 1.0}, "pinned_share=1 is outside 0 .. 0.9"),
        ({"cache_gb": 1, "cache_layer_shape": -1}, "cache_layer_shape=-1 is outside -0.9 .. 0.9"),
        ({"pinned_share": 0.1}, "pinned_share=0.1 has no effect while every expert is resident"),
        ({"prefill_chunk": -1}, "prefill_chunk=-1 is out of range"),
        ({"cache_gb": 1, "prefetch_depth": 1.5}, "prefetch_depth=1.5 is not a whole number"),
        ({"cache_gb": 1, "read_block_kib": 1}, "read_block_kib=1 is out of range"),
        ({"cache_gb": 1, "read_threads": 0}, "read_threads=0 is out of range"),
        ({"cache_gb": 1, "io_mode": "mmap"}, "io_mode=mmap is unknown"),
        ({"cache_gb": 1, "ssd_gbps": 0}, "ssd_gbps=0 is out of range"),
        ({"expert_bits": 7}, "expert_bits=7 is not a width"),
        ({"cold_bits": 2, "hot_share": 1.5}, "hot_share=1.5 is outside 0 .. 1"),
        ({"hot_share": 0.5}, "hot_share=0.5 has no effect without cold_bits"),
        ({"read_threads": 2}, "read_threads=2 has no effect while every expert is resident; set cache_gb"),
        ({"cach_gb": 1}, "cach_gb is not a knob; did you mean cache_gb?"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError) as e:
        Knobs.from_mapping(values)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_knob_is_refused_in_one_line_that_says_why_and_what_to_use(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    knob, _, value = name.partition("=")
    with pytest.raises(KnobError) as e:
        Knobs.from_mapping({"cache_gb": 1, knob: value or 0})
    assert str(e.value) == f"knob {'value ' * bool(value)}{name} was removed: {REMOVED[name]}"
    assert "; use " in str(e.value) and "\n" not in str(e.value)
    option = f"--{knob.replace('_', '-')}"
    for given in ([option, value or "0"], [f"{option}={value or 0}"]):
        assert main(["inspect", "--cache-gb", "1", *given]) == 2
        assert capsys.readouterr() == ("", f"error: {e.value}\n")
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    assert (option in capsys.readouterr().out) == bool(value)


def test_whole_floats_pass_as_integers() -> None:
    knobs = Knobs.from_mapping(json.loads('{"cache_gb": 1, "read_threads": 2.0, "expert_bits": 4.0}'))
    assert (knobs.cache_gb, knobs.read_threads, knobs.expert_bits) == (1.0, 2, 4)
    assert isinstance(knobs.read_threads, int) and isinstance(knobs.cache_gb, float)
    assert Knobs.from_mapping(knobs.as_dict()) == knobs


def test_hot_share_has_a_default_only_with_cold_bits() -> None:
    assert Knobs().resolved_hot_share == 1
    assert Knobs(cold_bits=2).resolved_hot_share == 0.25


def test_the_judge_is_known_by_its_texts(tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"
    file.write_text("- {name: a, kind: prose, prompt: one two, continuation: three}\n")
    first = Judge.load(file)
    file.write_text("- {name: renamed, kind: verse, prompt: one two, continuation: three}\n")
    assert Judge.load(file).fingerprint == first.fingerprint and len(first.fingerprint) == 16
    file.write_text("- {name: a, kind: prose, prompt: one two, continuation: four}\n")
    assert Judge.load(file).fingerprint != first.fingerprint


def test_the_metric_version_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Judge(()).fingerprint
    monkeypatch.setattr("engine.measure.judge.METRIC_VERSION", METRIC_VERSION + 1)
    assert Judge(()).fingerprint != before


def test_a_users_text_is_cut_without_loss(tmp_path: Path) -> None:
    content = " ".join(f"word{i}" for i in range(700))
    file = tmp_path / "mine.txt"
    file.write_text(content)
    texts = Judge.load(file).texts
    assert "".join(t.prompt + t.continuation for t in texts) == content
    assert len(texts) == 5 and all(len(t.prompt) > 2 * len(t.continuation) > 0 for t in texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"short", "has 5 characters; the limits are 400"),
        ("a.txt", b"\xff\xfe" * 400, "is not UTF-8 text"),
        ("a.yaml", b"{}", "holds no list"),
        ("a.yaml", b"- {name: x}", "entry 0: it needs"),
        ("a.yaml", b"- [", "is not valid YAML"),
        ("a.txt", None, "cannot be read (No such file or directory)"),
    ],
)
def test_bad_judges(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(JudgeError) as e:
        Judge.load(tmp_path / name)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_the_peak_is_a_high_water_mark(tmp_path: Path) -> None:
    """In a child process, because memory allocated by other tests would hide the increase."""
    script = (
        "from engine.system.memory import peak_memory_bytes as peak\n"
        "before = peak()\n"
        "block = b'x' * 80_000_000\n"
        "during = peak()\n"
        "del block\n"
        "print(during - before, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    during, after = map(int, done.stdout.split())
    assert 75_000_000 < during < 120_000_000 and after > 75_000_000
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t    1234 kB\n")
    assert _linux_peak(str(status)) == 1234 * 1024


def test_macos_reads_the_lifetime_maximum_of_the_footprint() -> None:
    class FakeLibproc:
        """rusage_info_v4: 16 bytes of uuid, then 64-bit fields; number 28 of them is the one wanted."""

        def proc_pid_rusage(self, pid: int, flavor: int, buffer: Any) -> int:
            assert flavor == 4 and pid > 0
            fields = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint64))
            for i in range(35):
                fields[2 + i] = 1000 + i
            return 0

    assert _macos_peak(FakeLibproc()) == 1028  # type: ignore[arg-type]
