"""Opening a tokenizer: permission for own code, and one line for whatever is wrong with its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from engine.errors import CheckpointError
from engine.tokenizer.open import check_template, code_note, open_tokenizer

OWN = """
import pathlib
from transformers import PreTrainedTokenizerFast
pathlib.Path(__file__).resolve()
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoTokenizer": ["own.OwnTokenizer", None]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("open") / "checkpoint", "qwen3_moe", bits=4)


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A folder with the files that a tokenizer needs."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(whole / name, folder / name)
    return folder


def describe(path: Path, **changes: Any) -> None:
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_own_code_runs_with_permission_only(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    (path / "own.py").write_text(OWN + f"open({str(ran)!r}, 'w')\n")
    describe(path, tokenizer_class="OwnTokenizer", auto_map=AUTO_MAP)
    with pytest.raises(
        CheckpointError, match=r"own.py, which is never run .*read that file.*--trust-code.*model.trust_code=true"
    ):
        open_tokenizer(path)
    assert not ran.exists()
    opened = open_tokenizer(path, trust_code=True)
    assert (
        ran.exists()
        and opened.tokenizer.encode("ab")
        and code_note(opened) == ("runs own.py of the checkpoint, because --trust-code is given")
    )


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("raise KeyError('x')", "KeyError.*own.py does not run with the transformers here"),
        ("import a_package_that_is_missing", "pip install a_package_that_is_missing"),
        ("class :", "own.py does not run"),
        ("class Other: pass", "own.py does not run"),
        ("raise SystemExit(3)", "own.py does not run"),
        (None, "own.py"),
    ],
)
def test_own_code_that_fails_is_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str | None, match: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    if source is not None:
        (path / "own.py").write_text(source)
    describe(path, tokenizer_class="OwnTokenizer", auto_map=AUTO_MAP)
    with pytest.raises(CheckpointError, match=match) as caught:
        open_tokenizer(path, trust_code=True)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_own_code_opens_with_permission_too(path: Path) -> None:
    opened = open_tokenizer(path, trust_code=True)
    assert code_note(opened) is None and opened.tokenizer.decode(opened.tokenizer.encode("mill")) == "mill"


def damages() -> dict[str, Callable[[Path], object]]:
    """Ways to damage a tokenizer's files that must end in one line."""

    def text(name: str, content: str) -> Callable[[Path], object]:
        return lambda path: (path / name).write_text(content)

    def of_json(name: str, **changes: Any) -> Callable[[Path], object]:
        def change(path: Path) -> None:
            (path / name).write_text(json.dumps({**json.loads((path / name).read_text()), **changes}))

        return change

    found: dict[str, Callable[[Path], object]] = {"no tokenizer.json": lambda path: (path / "tokenizer.json").unlink()}
    for content in ("", "{", "[]", "null", "7", "{}", '{"model": 7}', '{"model": {}, "decoder": 3}', "[" * 100_000, "\x00"):
        found[f"tokenizer.json {content:.30}"] = text("tokenizer.json", content)
    for content in ("", "{", "[]", "null", "7", '"x"', "[" * 100_000):
        found[f"tokenizer_config.json {content:.30}"] = text("tokenizer_config.json", content)
    for key, value in {
        "tokenizer_class": "NoSuchTokenizer", "added_tokens_decoder": {"x": {"content": 7}}, "eos_token": {"a": {"b": 1}},
    }.items():  # fmt: skip
        found[f"{key}={value}"] = of_json("tokenizer_config.json", **{key: value})
    found["model 7"] = of_json("tokenizer.json", model=7)
    found["decoder 7"] = of_json("tokenizer.json", decoder=7)
    found["vocab of texts"] = of_json("tokenizer.json", model={"type": "BPE", "vocab": {"a": "b"}, "merges": []})
    found["a folder"] = lambda path: ((path / "tokenizer.json").unlink(), (path / "tokenizer.json").mkdir())
    found["not UTF-8"] = lambda path: (path / "tokenizer.json").write_bytes(b'{"a": "\xff"}')
    return found


@pytest.mark.parametrize("name", damages())
def test_damaged_files_are_one_line_or_are_not_needed(path: Path, name: str) -> None:
    damages()[name](path)
    try:
        opened = open_tokenizer(path)
    except CheckpointError as e:
        line = str(e)
        assert "\n" not in line and str(path) in line and ("copy" in line or "pip install" in line)
    else:  # transformers does without the damaged part
        assert opened.tokenizer.decode(opened.tokenizer.encode("mill")) == "mill"


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages | nofilter }}", "{% endif %}", "{{ a b }}"])
def test_a_chat_template_that_does_not_compile_is_one_line(path: Path, template: str) -> None:
    describe(path, chat_template=template)
    opened = open_tokenizer(path)
    with pytest.raises(CheckpointError, match=r"chat template cannot be used .*line 1.*copy") as caught:
        check_template(opened.tokenizer, path)
    assert "\n" not in str(caught.value)


def test_a_template_may_refuse_a_message_or_be_missing(path: Path) -> None:
    check_template(open_tokenizer(path).tokenizer, path)
    describe(path, chat_template="{{ raise_exception('give a system message') }}")
    check_template(open_tokenizer(path).tokenizer, path)
    describe(path, chat_template="{{ messages[0].content }}")
    check_template(open_tokenizer(path).tokenizer, path)


@pytest.mark.parametrize("value", [7, 1.5, True, ["a"], {"a": 1}, [{"name": "default", "template": "{% for %}"}]])
def test_a_chat_template_of_another_type_is_one_line(path: Path, value: Any) -> None:
    describe(path, chat_template=value)
    with pytest.raises(CheckpointError) as caught:
        check_template(open_tokenizer(path).tokenizer, path)
    assert "\n" not in str(caught.value)
