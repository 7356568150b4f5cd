"""Options that commands share: every knob is one, with its default, and a removed knob is refused with its reason."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from engine import Knobs
from engine.cli.arguments.options import add_eval_texts, add_knobs, add_model, knobs_given, knobs_of, model_of
from engine.errors import HeadraceError, KnobError
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI


def test_every_knob_is_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_knobs(parser)
    assert knobs_of(parser.parse_args([])) == Knobs()
    given = ["--cache-gb", "0.5", "--sync-window", "all", "--no-verify-reads", "--io-mode", "direct"]
    assert knobs_given(parser.parse_args(given)) == {
        "cache_gb": 0.5, "sync_window": 0, "verify_reads": False, "io_mode": "direct",
    }  # fmt: skip
    with pytest.raises(KnobError, match="bits_by was removed"):
        parser.parse_args(["--bits-by", "layer"])


def test_some_knobs_alone() -> None:
    parser = argparse.ArgumentParser()
    add_knobs(parser, ("read_threads",))
    assert knobs_given(parser.parse_args(["--read-threads", "3"])) == {"read_threads": 3}
    with pytest.raises(SystemExit):
        parser.parse_args(["--cache-gb", "1"])


def test_the_model_as_an_option_and_as_an_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    parser = argparse.ArgumentParser()
    add_model(parser, positional=True)
    assert model_of(parser.parse_args([])) == KIMI_MINI
    assert model_of(parser.parse_args(["here"])) == model_of(parser.parse_args(["--model", "here"])) == Path("here")
    with pytest.raises(HeadraceError, match="two checkpoints"):
        model_of(parser.parse_args(["here", "--model", "there"]))


def test_older_names_of_the_evaluation_texts() -> None:
    parser = argparse.ArgumentParser()
    add_eval_texts(parser)
    assert parser.parse_args([]).eval_texts == EVALUATION_TEXTS
    for option in ("--eval-texts", "--judge", "--text"):
        assert parser.parse_args([option, "mine.txt"]).eval_texts == Path("mine.txt")
