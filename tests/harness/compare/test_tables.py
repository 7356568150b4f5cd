"""Tables: a comparison fits 80 and 60 columns and says what differs, what noise explains and what is not comparable."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console
from two_studies import study

from harness.compare.comparison import Comparison, compare
from harness.compare.settings import Ratio
from harness.compare.tables import interval, regression_lines, show


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    place = tmp_path_factory.mktemp("studies")
    other = study(place / "after", 1, factor=0.8, mlx="0.33.0", eval_fingerprint="c" * 16, settings=0)
    return compare([study(place / "before", 0), other], 0.05)


@pytest.mark.parametrize("width", [80, 60])
def test_the_text_fits(found: Comparison, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    show(console, found)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width, text
    words = " ".join(text.split())
    for said in (
        "B against A: after against before",
        "differs in versions: mlx 0.32.4 -> 0.33.0",
        "not comparable: perplexity, because the evaluation texts differ",
        "default: trial 1 in A, trial 1 in B, the same setting",
        "settings measured in both: 14",
        "not compared: the evaluation texts differ",
        "regression: after: tok/s of default is ",
        "not judged: ppl of after",
    ):
        assert said in words, text
    assert any(line.split()[:1] == ["tok/s"] and line.endswith("worse") for line in text.splitlines())


def test_no_regression_is_said(found: Comparison) -> None:
    calm = Comparison(found.base, [], 0.05)
    assert regression_lines(calm) == ["no regression of more than 5 % beyond noise"]


def test_intervals_as_text() -> None:
    assert interval(Ratio("decode_tok_s", math.log(1.36), 0.05, 1000)) == "1.36x (1.23 .. 1.5)"
    assert interval(Ratio("peak_memory_gb", math.log(0.977), 0.004, 1000)) == "-2.3 % (-3.1 .. -1.5)"
    assert interval(Ratio("perplexity", math.log(1.003), 0.0, 3)) == "+0.3 %"
    assert interval(Ratio("perplexity", 0.0, 0.0, 3)) == "="
