"""A setting on the command line: applied, overridden and refused, each in one line on stderr."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main
from engine.checkpoint.checkpoint import Checkpoint
from engine.cli.arguments.options import add_eval_texts, add_knobs, add_model, add_setting, eval_texts_of, knobs_of, model_of
from engine.errors import HeadraceError, KnobError
from engine.knobs import Knobs
from engine.setting.setting_file import Setting
from engine.system.shipped import KIMI_MINI

TEXT = "The miller opens the headrace and the wheel begins to turn. " * 8
SETTING = Setting(
    "fastest", {"cache_gb": 0.01, "read_threads": 2}, study="demo", trial=17, confirmed=True,
    model={"path": "${root:}/experiments/kimi_mini/checkpoint", "name": "kimi_mini"}, search_only={"ssd_gbps": 5.0},
    protocol={"warm_up_tokens": 1, "timed_tokens": 4, "page_cache": "as_is"}, eval_texts={"file": "texts.txt"},
    measured={"perplexity": {"value": 17.0}, "decode_tok_s": {"value": 1e-3, "low": 1e-3, "high": 1e-3, "noise": 0.1}},
)  # fmt: skip


def written(place: Path, setting: Setting = SETTING) -> Path:
    (place / "texts.txt").write_text(TEXT)
    file = place / "fastest.yaml"
    file.write_text(setting.to_yaml())
    return file


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model(parser)
    add_eval_texts(parser, of_setting=True)
    add_setting(parser)
    add_knobs(parser)
    return parser.parse_args(words)


def test_model_knobs_and_texts_come_from_the_file(tmp_path: Path, capsys: Any) -> None:
    args = arguments("--config", str(written(tmp_path)))
    assert model_of(args) == KIMI_MINI
    assert knobs_of(args) == Knobs(cache_gb=0.01, read_threads=2)
    assert knobs_of(args, search=True).ssd_gbps == 5
    assert eval_texts_of(args) == tmp_path / "texts.txt"
    assert capsys.readouterr().err == f"note: fastest of demo (trial 17), confirmed, from {tmp_path}/fastest.yaml\n", "once"


def test_metal_knobs_of_a_file_are_left_out_elsewhere_and_those_of_the_command_refused(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.model.environment.backend_knobs.backend", lambda: "cuda")
    mac = replace(SETTING, knobs={**SETTING.knobs, "gpu_keep_warm": True, "mlx_ops_per_buffer": 20})
    file = str(written(tmp_path, mac))
    assert knobs_of(arguments("--config", file)) == Knobs(cache_gb=0.01, read_threads=2)
    notes = capsys.readouterr().err
    for shown in ("gpu_keep_warm=true", "mlx_ops_per_buffer=20"):
        assert f"note: {shown} of the setting is left out: MLX computes on cuda here\n" in notes
    for words in (("--gpu-keep-warm",), ("--config", file, "--mlx-fast-synch")):
        with pytest.raises(KnobError, match=r"=true exists only on MLX's Metal backend, and MLX computes on cuda here"):
            knobs_of(arguments(*words))


def test_options_override_the_file_and_say_so(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine").symlink_to(KIMI_MINI)
    words = ("--model", str(tmp_path / "mine"), "--cache-gb", "0.02", "--read-threads", "2", "--eval-texts", "x.txt")
    args = arguments("--config", str(written(tmp_path)), *words)
    assert knobs_of(args) == Knobs(cache_gb=0.02, read_threads=2)
    assert model_of(args) == tmp_path / "mine" and eval_texts_of(args) == Path("x.txt")
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"note: --model {tmp_path}/mine overrides ${{root:}}/experiments/kimi_mini/checkpoint of the setting",
        "note: --cache-gb overrides cache_gb=0.01 of the setting",
    ]


def test_what_differs_is_said_and_the_command_goes_on(tmp_path: Path, capsys: Any) -> None:
    other = replace(
        SETTING, machine={"device": "Apple M2 Max"}, versions={"mlx": "0.1"},
        model={**SETTING.model, "fingerprint": "2-0123456789abcdef"},
    )  # fmt: skip
    assert knobs_of(arguments("--config", str(written(tmp_path, other)))).cache_gb == 0.01
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["machine:", "version:", "model:"]
    assert Checkpoint.open(KIMI_MINI).fingerprint in lines[2]


def test_another_chunk_than_in_the_study_is_said(tmp_path: Path, capsys: Any) -> None:
    chosen = replace(SETTING, knobs={"cache_gb": 0.01, "prefill_chunk": "auto"}, machine={"prefill_chunk": 256})
    file = str(written(tmp_path, chosen))
    knobs_of(arguments("--config", file))
    (note,) = capsys.readouterr().err.splitlines()[1:]
    assert note.startswith("note: prefill_chunk=auto was 256 in the study and is 512 tokens (")
    assert note.endswith(" here; give --prefill-chunk 256 to run as it did")
    knobs_of(arguments("--config", file, "--prefill-chunk", "256"))
    assert capsys.readouterr().err.splitlines()[1:] == ["note: --prefill-chunk overrides prefill_chunk=auto of the setting"]


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"model": {"path": "~/none"}}, (), "the checkpoint ~/none is not there; give its folder with --model"),
        ({"model": {}}, (), "names no model; give its folder with --model"),
        ({"engine": {"command": "./m"}}, (), "is for the engine ./m, not for this one; use that"),
        ({"engine": {"command": "./m"}, "commands": {"run": "echo | ./m"}}, (), "run: echo | ./m"),
        ({"knobs": {"cache_gb": 0.01, "sync_window": 2}}, ("--prefetch", "stale_gate"), "set sync_window=1 or prefetch=off"),
        ({"knobs": {"cache_gb": -1}}, (), "fastest.yaml: cache_gb=-1 is out of range"),
        ({}, ("--from", "demo"), "are two settings; give one of them"),
        ({}, ("--pick", "fastest"), "--pick fastest needs a study; give it with --from STUDY"),
    ],
)
def test_what_cannot_work_is_one_line(changes: dict, words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    args = arguments("--config", str(written(tmp_path, replace(SETTING, **changes))), *words)
    with pytest.raises(HeadraceError) as e:
        knobs_of(args), model_of(args)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_a_pick_without_a_study_is_refused() -> None:
    for words in (("--pick", "fastest"), ("--trial", "3")):
        with pytest.raises(HeadraceError, match="needs a study; give it with --from STUDY"):
            knobs_of(arguments(*words))
    with pytest.raises(HeadraceError, match="are two settings"):
        knobs_of(arguments("--from", "demo", "--pick", "fastest", "--trial", "3"))


def test_a_cache_that_cannot_fit_is_refused_by_the_loader(tmp_path: Path, capsys: Any) -> None:
    file = written(tmp_path, replace(SETTING, knobs={"cache_gb": 1e-6}))
    assert main(["measure", "--config", str(file)]) == 2
    assert "is below one token's experts" in capsys.readouterr().err.splitlines()[-1]


def test_measure_repeats_the_studys_measurement_and_compares(tmp_path: Path, capsys: Any) -> None:
    assert main(["measure", "--config", str(written(tmp_path))]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert figures["protocol"] == {**SETTING.protocol, "score": True, "state": "prefilled", "prefill": "real"}
    assert "held-to-5-GB/s" in figures["mode"] and "note: reads are limited to 5 GB/s" in said.err
    promised = figures["promised"]
    assert promised["decode_tok_s"]["measured"] == figures["decode_tok_s"] and not promised["decode_tok_s"]["agrees"]
    assert "differs: +" in said.err and "figures differ from the study's: " in said.err
    right = {"perplexity": {"value": figures["perplexity"]}}
    assert (
        main(["measure", "--config", str(written(tmp_path, replace(SETTING, measured=right))), "--timed-tokens", "2"]) == 0
    )
    said = capsys.readouterr()
    assert "1 of 1 figures agree with the study's" in said.err and json.loads(said.out)["protocol"]["timed_tokens"] == 2
