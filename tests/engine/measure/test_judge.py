"""Judge: files are read, cut and refused as documented, and the fingerprint covers the texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Judge, JudgeError
from engine.measure.judge import MIN_CHARS, SEGMENT_CHARS, Text

YAML = "- {name: a, kind: prose, prompt: The mill, continuation: ' stood'}\n"


def test_a_text_file_is_cut_into_prompts_and_continuations(tmp_path: Path) -> None:
    content = "".join(chr(97 + i % 26) for i in range(3 * SEGMENT_CHARS))
    (tmp_path / "mine.txt").write_text(content)
    texts = Judge.load(tmp_path / "mine.txt").texts
    assert [t.name for t in texts] == ["mine-0", "mine-1", "mine-2"]
    assert "".join(t.prompt + t.continuation for t in texts) == content
    assert all(len(t.continuation) == SEGMENT_CHARS // 4 for t in texts)


def test_a_yaml_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(YAML)
    assert Judge.load(tmp_path / "mine.yaml").texts == (Text("a", "prose", "The mill", " stood"),)


def test_lists_give_the_same_texts() -> None:
    judge = Judge((Text("a", "prose", "one", "two"), Text("b", "code", "three", "four")))
    assert Judge.from_lists(judge.as_lists()) == judge


def test_the_fingerprint_covers_texts_but_not_names(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge((Text("a", "prose", "one", "two"),))
    assert judge.fingerprint == Judge((Text("b", "code", "one", "two"),)).fingerprint
    assert judge.fingerprint != Judge((Text("a", "prose", "on", "etwo"),)).fingerprint
    before = judge.fingerprint
    monkeypatch.setattr("engine.measure.judge.METRIC_VERSION", 99)
    assert judge.fingerprint != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"x" * (MIN_CHARS - 1), f"has {MIN_CHARS - 1} characters; the limits are"),
        ("a.txt", b"\xff" * 500, "is not UTF-8 text"),
        ("a.yaml", b"a: [", "is not valid YAML"),
        ("a.yaml", b"a: 1", "holds no list"),
        ("a.yaml", b"- {name: a, kind: b, prompt: c}", "entry 0: it needs non-empty"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JudgeError, match=message):
        Judge.load(tmp_path / name)
