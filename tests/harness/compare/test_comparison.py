"""Comparison: the JSON document has all figures, no NaN, and the same keys as the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from two_studies import study

from harness.compare.comparison import compare, document, plain

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("studies")
    folders = [study(place / "a", 0), study(place / "b", 1, factor=0.8), study(place / "c", 2, eval_fingerprint="c" * 16)]
    text = json.dumps(document(compare(folders, 0.05)), allow_nan=False)
    made: dict[str, Any] = json.loads(text)
    return made


def test_the_document_has_the_keys_of_the_documentation(found: dict[str, Any]) -> None:
    section = (ROOT / "docs" / "compare.md").read_text().partition("## JSON")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", section, re.MULTILINE))
    assert {*found, "exit_status"} <= {*rows, "headrace_version"}
    for key, one in (("studies", found["studies"][0]), ("comparisons", found["comparisons"][0])):
        assert set(re.findall(r"`(\w+)`", rows[key])) <= set(one), key
    assert set(re.findall(r"`(\w+)`", rows["regression"])) - {"limit", "found"} <= set(found["regression"]["found"][0])


def test_every_figure_has_a_value_and_an_interval(found: dict[str, Any]) -> None:
    assert found["base"] == "a" and [s["name"] for s in found["studies"]] == ["a", "b", "c"]
    default = found["studies"][0]["recommended"]["default"]
    assert default["figures"]["decode_tok_s"]["low"] < default["figures"]["decode_tok_s"]["value"]
    assert default["knobs"]["cache_gb"] and default["runs"] == 4
    slower = next(s for s in found["comparisons"][0]["settings"] if s["name"] == "default")
    ratio = slower["ratios"]["decode_tok_s"]
    assert ratio["low"] < ratio["ratio"] < ratio["high"] < 1 and ratio["verdict"] == "worse" and ratio["comparable"]
    assert slower["same_setting"] and slower["base_trial"] == slower["trial"] == 1
    assert found["comparisons"][0]["settings_in_both"]["count"] == 14
    assert found["comparisons"][0]["fronts"]["ratio"] < 1


def test_what_is_not_comparable_has_no_verdict(found: dict[str, Any]) -> None:
    other = found["comparisons"][1]
    assert set(other["incomparable"]) == {"perplexity"} and not other["fronts"]["comparable"]
    ratios = other["settings"][1]["ratios"]
    assert ratios["perplexity"]["verdict"] is None and ratios["decode_tok_s"]["verdict"]
    assert {r["study"] for r in found["regression"]["found"]} == {"b"}


def test_unknown_figures_are_null() -> None:
    assert plain({"a": float("nan"), "b": (1, float("inf"))}) == {"a": None, "b": [1, None]}
