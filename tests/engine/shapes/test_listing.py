"""Tests of the listing of shapes."""

from __future__ import annotations

import json

import pytest

from engine.__main__ import main
from engine.shapes.library import names, shape
from engine.shapes.listing import describe, row


def test_a_row_has_the_published_bits_and_size() -> None:
    found = row(shape("gpt_oss_20b"))
    assert found[:5] == ("gpt_oss_20b", 24, 32, 4, 4) and found[6] == "openai/gpt-oss-20b"
    assert found[5] == pytest.approx(13.76, abs=0.01)


def test_a_description_has_sizes_and_sources() -> None:
    found = describe(shape("olmoe_1b_7b"))
    assert [(size["bits"], size["as_published"]) for size in found["sizes"]] == [
        (16, True), (2, False), (3, False), (4, False), (8, False)
    ]  # fmt: skip
    assert found["source"]["config"].startswith("https://huggingface.co/allenai/")


def test_the_command_lists_all_and_describes_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shapes"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["shape", *names()]
    assert main(["shapes", "deepseek_v4_flash"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 43
    assert main(["shapes", "gpt_oss_200b"]) == 2
    assert "shape gpt_oss_200b is unknown; did you mean gpt_oss_20b?" in capsys.readouterr().err
