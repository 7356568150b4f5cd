"""The engine's parser: what it does with values, and that `python -m engine` is the program's name."""

from __future__ import annotations

import math

import pytest

from engine.__main__ import main
from engine.__main__ import parser as _parser


def test_values_of_options() -> None:
    parser = _parser("python -m engine")
    assert parser.parse_args(["pack", "a", "b", "--levels", "2,4"]).levels == (2, 4)
    assert parser.parse_args(["replay", "t"]).half_life == [0.0, 4.0, 16.0, 64.0, math.inf]
    assert parser.parse_args(["bench", "decode", "--windows", "1", "all"]).windows == [1, 0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pack", "a", "b", "--workers", "0"], "argument --workers: 0 is below 1"),
        (["generate", "--chat-template-args", "[1]"], "[1] is not a JSON object"),
        (["genrate"], "invalid choice: 'genrate'"),
    ],
)
def test_a_usage_error(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and err.startswith("usage: python -m engine")
