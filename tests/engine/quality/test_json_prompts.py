"""JSON prompts: Python's parser decides, completed objects are counted, and wrong files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Judge, JudgeError, load
from engine.measure.judge import Text
from engine.quality.json_prompts import JsonPrompts, parses
from engine.quality.quality import quality
from engine.quality.reference import (
    take_reference,
)
from engine.system.shipped import JSON_PROMPTS, KIMI_MINI

FEW = JsonPrompts(24, JsonPrompts.load(JSON_PROMPTS).prompts[:1])


@pytest.mark.parametrize(
    ("text", "valid"),
    [('{"a": [1, null]}', True), ('{"a": 1}, and so on', True), ('{"a": 1', False), ('{"a": NaN}', False),
     ('{"a": 1,}', False), ("{'a': 1}", False), ('{"a": "\n"}', False), ("[" * 100_000, False)],
)  # fmt: skip
def test_what_parses(text: str, valid: bool) -> None:
    assert parses(text) == valid


def test_completed_objects_are_counted() -> None:
    """kimi_mini completes the first prompt, but not within 5 tokens, and not without examples."""
    examples, opened = FEW.prompts[0]
    prompts = JsonPrompts(24, (*FEW.prompts, ("", '{"the": {')))
    judge = Judge((Text("a", "prose", "The mill", " stood there"),))
    with load(KIMI_MINI) as resident:
        result = quality(resident, judge, take_reference(resident, judge, prompts), prompts)
        assert not JsonPrompts(5, FEW.prompts).valid(resident.generate).any()
        assert parses(opened + "".join(resident.generate(examples + opened, 24)))
    assert result.json_valid == result.reference_json_valid == 0.5 and result.json_prompts == 2
    assert result.prompts == prompts.fingerprint != FEW.fingerprint


def test_the_published_prompts_are_frozen() -> None:
    prompts = JsonPrompts.load(JSON_PROMPTS)
    assert prompts.fingerprint == "27e6673c992f9bbb" and len(prompts.prompts) >= 20
    for examples, _ in prompts.prompts:
        begins = [i for i, c in enumerate(examples) if c == "{" and examples[:i].rstrip(" ").endswith(("\n", "", "A:"))]
        assert any(parses(examples[i:]) for i in begins)


def test_wrong_prompt_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    for content, message in (
        ("max_tokens: 0\nprompts: [{examples: a, open: '{'}]", "need max_tokens of at least 1"),
        ("max_tokens: 4\nprompts: [{examples: a, open: 'x'}]", "entry 0: it needs examples, and open that begins with {"),
        ("max_tokens: 4\nprompts: [7]", "entry 0: it needs examples"),
        ("a: [", "it is not YAML"),
    ):
        file.write_text(content)
        with pytest.raises(JudgeError, match=message):
            JsonPrompts.load(file)
