"""Own code of a tokenizer: found in the configuration, read as text, never run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError
from engine.tokenizer.own_code import attribute_of, class_in, own_code, read_tokenizer_config, source_of


@pytest.mark.parametrize(
    ("auto_map", "name"),
    [
        ({"AutoTokenizer": ["own.Words", None]}, "own.py"),
        ({"AutoTokenizer": "own.Words"}, "own.py"),
        (["own.Words", None], "own.py"),
        ({"AutoTokenizer": ["ORG/NAME--own.Words", None]}, "ORG/NAME/own.py"),
        ({"AutoConfig": "own.Words"}, None),
        ({"AutoTokenizer": [None, None]}, None),
        (7, None),
        (None, None),
    ],
)
def test_own_code_is_what_auto_map_names(tmp_path: Path, auto_map: Any, name: str | None) -> None:
    code = own_code(tmp_path, {"auto_map": auto_map})
    assert (None if code is None else code.name) == name
    assert code is None or code.class_name == "Words"


def test_constants_are_read_without_running_the_file(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nclass Words:\n"
        "    a: int = 7\n    b = '|'.join(['x', 'y'])\n    c = f()\n    d = '-'.join(c)\n"
    )
    code = own_code(tmp_path, {"auto_map": ["own.Words"]})
    assert code is not None and (tree := source_of(code)) is not None and (cls := class_in(tree, "Words")) is not None
    assert [attribute_of(cls, name) for name in "abcde"] == [7, "x|y", None, None, None] and not ran.exists()
    (tmp_path / "own.py").write_text("class :")
    assert source_of(code) is None


def test_a_configuration_that_is_none_is_one_line(tmp_path: Path) -> None:
    assert read_tokenizer_config(tmp_path) == {}
    for text in ("{", "[1]", "null", "7", '"x"', "[" * 100_000, json.dumps({"a": 1})[:-1]):
        (tmp_path / "tokenizer_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"tokenizer_config.json .*copy it again") as caught:
            read_tokenizer_config(tmp_path)
        assert "\n" not in str(caught.value)
