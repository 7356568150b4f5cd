"""Kept prompts: decoded tokens have the same logits after a restored prompt as after a computed one, in every family."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import configuration, file_of, model_files
from tiny import CONFIGS, make

from engine import CheckpointError, Engine, HeadraceError, Judge, Knobs, Measurement, Protocol, footprint, load
from engine.prompt_cache.kept import Keeping, timed_texts

ROOT = Path(__file__).resolve().parents[3]
PROMPTS, CONTINUATION = (34, 1, 19), 5  # a prompt above and one below the sliding windows
RNG = np.random.default_rng(5)
Texts = list[tuple[list[int], list[int]]]
TEXTS: Texts = [(RNG.integers(0, 255, n).tolist(), RNG.integers(0, 255, CONTINUATION).tolist()) for n in PROMPTS]
FILES = [f for f in model_files() if f not in {file_of(config) for config in CONFIGS.values()}]


class Seen:
    """What came out of all texts."""

    def __init__(self, engine: Engine, keeping: Keeping | None, texts: Texts = TEXTS) -> None:
        self.nll, self.restored, self.logits = [], [], []
        for prompt, continuation in timed_texts(engine, texts, "prefilled", keeping):
            found = prompt(True)
            self.nll.append(found.nll)
            self.restored.append(found.restored)
            self.logits += [np.array(logits) for logits, _ in continuation]

    def equals(self, other: Seen) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(self.nll + self.logits, other.nll + other.logits, strict=True))


def check(path: Path, folder: Path, texts: Texts = TEXTS, **knobs: Any) -> list[str]:
    """Compute, keep and restore the texts' prompts with everything resident, and restore them streamed; return the lines."""
    said: list[str] = []
    keeping = Keeping(folder=folder, say=said.append)
    with load(path, Knobs(**knobs)) as engine:
        expected = Seen(engine, None, texts)
        kept, restored = Seen(engine, keeping, texts), Seen(engine, keeping, texts)
    assert not any(kept.restored) and kept.equals(expected)
    with load(path, Knobs(cache_gb=footprint(path, Knobs(**knobs)).one_token_gb, **knobs)) as engine:
        streamed = Seen(engine, keeping, texts)
        assert engine.stats.misses > 0
    for seen in (restored, streamed):
        assert all(seen.restored) != bool(said), said
        assert seen.equals(expected)
    return said


@pytest.mark.parametrize("family", CONFIGS)
def test_restored_equals_computed(checkpoint: Any, tmp_path: Path, family: str) -> None:
    assert not check(checkpoint(family), tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_restored_equals_computed_in_every_model_file(tmp_path: Path, file: str) -> None:
    path = make(tmp_path / file, file, config=configuration(file))
    try:
        load(path).close()
    except CheckpointError:
        return
    two = [(prompt, continuation[:2]) for prompt, continuation in TEXTS[:2]]
    print(check(path, tmp_path / "kept", two))


JUDGE = Judge.from_lists([[name, "text", name + " quick brown fox jumps over it", "the lazy dogs"] for name in "ab"])
ONE = Judge(JUDGE.texts[:1])
REAL, RESTORED = (Protocol(warm_up_tokens=2, prefill=prefill) for prefill in ("real", "restored"))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def keeping(tmp_path: Path, said: list[str]) -> Keeping:
    return Keeping(folder=tmp_path / "kept", say=said.append)


def measured(path: Path, protocol: Protocol, keeping: Keeping, **knobs: Any) -> Measurement:
    with load(path, Knobs.from_mapping(knobs)) as engine:
        return engine.measure(JUDGE, protocol, keeping=keeping)


@pytest.mark.parametrize("state", ["steady", "cold"])
def test_a_given_state_is_that_of_computed_and_of_restored_prompts(checkpoint: Any, keeping: Keeping, state: str) -> None:
    path, knobs = checkpoint("qwen3_moe"), {"cache_gb": 0.0008}
    runs = [measured(path, dataclasses.replace(how, state=state), keeping, **knobs) for how in (REAL, RESTORED, RESTORED)]
    # For `steady` the first text needs the routing of all, so the second one's prompt is kept before its turn.
    assert [run.prefill for run in runs] == ["real", "restored" if state == "steady" else "untimed", "restored"]
    assert len({(run.hits, run.misses, run.nll) for run in runs}) == 1
    assert (runs[0].hits, runs[0].misses) != (measured(path, REAL, keeping, **knobs).hits, 0)


def files_of(keeping: Keeping) -> list[Path]:
    return sorted(keeping.path.glob("*.safetensors"))


def test_a_measurement_says_how_its_prompts_came(checkpoint: Any, keeping: Keeping, said: list[str]) -> None:
    real, first, second = (
        measured(checkpoint("qwen3_moe"), how, keeping, cache_gb=0.0008) for how in (REAL, RESTORED, RESTORED)
    )
    assert (real.prefill, first.prefill, second.prefill) == ("real", "untimed", "restored")
    assert real.prefill_tok_s is not None and real.ttft_ms is not None
    assert {first.prefill_tok_s, first.ttft_ms, second.prefill_tok_s, second.ttft_ms} == {None}
    assert real.nll == first.nll == second.nll and real.timed_nll == second.timed_nll
    assert (real.hits, real.misses) == (second.hits, second.misses) and real.hits and real.misses
    assert not said


def test_only_timed_prompts_are_kept(checkpoint: Any, keeping: Keeping) -> None:
    judge = Judge.from_lists([["a", "t", "one two three", "four five six"], ["b", "t", "seven eight", "nine ten"]])
    with load(checkpoint("qwen3_moe")) as engine:
        engine.measure(judge, dataclasses.replace(RESTORED, timed_tokens=3), keeping=keeping)
    assert len(files_of(keeping)) == 1


def test_lossy_settings_do_not_share_and_a_dependence_on_the_cache_is_computed(checkpoint: Any, keeping: Keeping) -> None:
    path = checkpoint("qwen3_moe")
    for knobs, prefill in (({}, "untimed"), ({"expert_bits": 4}, "untimed"), ({"cache_gb": 0.0004}, "restored"),
                           ({"cache_gb": 0.0004, "cold_drop": 0.2}, "real")):  # fmt: skip
        for _ in range(2 if "cold_drop" in knobs else 1):
            with load(path, Knobs.from_mapping(knobs)) as engine:
                assert engine.measure(JUDGE, RESTORED, keeping=keeping).prefill == prefill, knobs
    assert len(files_of(keeping)) == 4


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "rename", "other model", "version"])
def test_a_file_that_cannot_be_used_is_computed_anew(
    checkpoint: Any, keeping: Keeping, said: list[str], monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    with load(checkpoint("mixtral" if harm == "other model" else "qwen3_moe")) as engine:
        engine.measure(ONE, RESTORED, keeping=keeping)
    (file,) = files_of(keeping)
    content = file.read_bytes()
    if harm == "flip":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif harm in ("cut", "empty"):
        file.write_bytes(content[: len(content) // 2 if harm == "cut" else 0])
    elif harm == "rename":  # the prompt of another setting under this one's name
        with load(checkpoint("qwen3_moe"), Knobs(expert_bits=4)) as engine:
            engine.measure(ONE, RESTORED, keeping=keeping)
        (other,) = set(files_of(keeping)) - {file}
        other.rename(file.with_name(file.name[:16] + other.name[16:]))
        file.unlink()
    elif harm == "version":
        monkeypatch.setattr("engine.prompt_cache.identity.FORMAT", 1)
    with load(checkpoint("qwen3_moe")) as engine:
        said.clear()
        expected = engine.measure(ONE, REAL).nll
        first, second = (engine.measure(ONE, RESTORED, keeping=keeping) for _ in range(2))
    assert (first.prefill, second.prefill) == ("untimed", "restored") and first.nll == second.nll == expected
    assert len(said) == 1 and "\n" not in said[0] and ("damaged" in said[0] or "another model" in said[0])


def test_a_full_limit_and_a_folder_that_cannot_be_written_are_told(checkpoint: Any, tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    small = Keeping(1e-6, tmp_path / "kept", said.append)
    nowhere = Keeping(1, tmp_path / "file" / "kept", said.append)
    with load(checkpoint("qwen3_moe")) as engine:
        for keeping, prefill in ((small, "untimed"), (nowhere, "real")):
            assert engine.measure(JUDGE, RESTORED, keeping=keeping).prefill == prefill
    assert (
        len(said) == 2
        and "above the limit of kept prompts 1e-06" in said[0]
        and said[1].endswith("every prompt is computed")
    )
    with pytest.raises(HeadraceError, match="the limit of kept prompts, 0 GB, is not above 0"):
        Keeping(0)


WRITE = """
import sys, os, signal
from pathlib import Path
from engine import Judge, Protocol, load
from engine.prompt_cache import file
from engine.prompt_cache.kept import Keeping
if sys.argv[3] == "kill":
    file.commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the content is written, the name is not there
with load(sys.argv[1]) as engine:
    judge = Judge.from_lists([["a", "text", "a quick brown fox jumps over it", "the lazy dogs"]])
    for _ in range(3):
        protocol = Protocol(timed_tokens=4, prefill="restored", score=False)
        engine.measure(judge, protocol, keeping=Keeping(1, Path(sys.argv[2])))
"""


def test_killed_while_writing_and_two_writers_at_once(checkpoint: Any, keeping: Keeping, said: list[str]) -> None:
    path = checkpoint("qwen3_moe")
    command = [sys.executable, "-c", WRITE, str(path), str(keeping.path)]
    assert subprocess.run([*command, "kill"], check=False, cwd=ROOT).returncode == -signal.SIGKILL
    assert len(list(keeping.path.iterdir())) == 1 and not [f for f in files_of(keeping) if not f.name.startswith(".")]
    both = [subprocess.Popen([*command, "write"], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]
    assert 1 <= len(files_of(keeping)) <= 2  # each may have written the prompt before it saw that of the other
    assert not [f for f in keeping.path.iterdir() if f.name.startswith(".")]  # what the killed one left is removed
    with load(path) as engine:
        assert engine.measure(ONE, RESTORED, keeping=keeping).prefill == "restored"
    assert not said
