"""Setting files: what is written is read again, and a wrong file is one line that names the file and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import HeadraceError, KnobError
from engine.knobs import Knobs
from engine.setting.setting_file import (
    FORMAT,
    Setting,
    is_as_written,
    is_edited,
    knobs_to_write,
    parse_setting,
    read_setting,
)

KNOBS = Knobs(cache_gb=0.012345678901, sync_window=0, evict_half_life=1e9, io_mode="direct", expert_bits=4, ssd_gbps=0.1)


def whole() -> Setting:
    used, search_only = knobs_to_write(KNOBS)
    return Setting(
        "fastest", used, "fastest, lossless", "demo", 17, False, 3, {"path": "here", "fingerprint": "2-a7ceb54acf6423cb"},
        search_only=search_only, machine={"device": "AMD EPYC (2 cores)", "memory_gb": 25.3}, versions={"mlx": "0.32.4"},
        protocol={"warm_up_tokens": 8, "timed_tokens": 128, "page_cache": "as_is"},
        eval_texts={"name": "headrace_v1", "file": "../judge.yaml"},
        measured={"decode_tok_s": {"value": 97.123456789, "low": 90.1, "high": 104.2, "noise": 0.07}},
        commands={"serve": "python -m engine serve --from demo --pick fastest"},
    )  # fmt: skip


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    text = whole().to_yaml()
    file = tmp_path / "fastest.yaml"
    file.write_text(text)
    found = read_setting(file)
    assert found.for_use(search=True) == KNOBS
    assert found.for_use().ssd_gbps is None, "a limit for measuring alone"
    for name in ("name", "rule", "trial", "confirmed", "runs", "model", "machine", "protocol", "measured", "commands"):
        assert getattr(found, name) == getattr(whole(), name), name
    assert found.title == "fastest of demo (trial 17)"
    assert is_as_written(text) and not is_edited(text) and not found.edited
    changed = text.replace("expert_bits: 4", "expert_bits: 8")
    assert is_edited(changed) and not is_as_written(changed) and parse_setting(changed, "f", tmp_path).edited
    assert found.to_yaml() == text


def test_knobs_that_are_off_are_not_written_and_the_others_are_even_at_their_default() -> None:
    assert knobs_to_write(Knobs()) == ({"prefill_chunk": "auto"}, {})
    used, search_only = knobs_to_write(Knobs(cache_gb=1, sync_window=0))
    assert used == {
        "cache_gb": 1.0, "evict_half_life": 16.0, "sync_window": "all", "read_block_kib": 1024, "read_threads": 16,
        "io_mode": "buffered", "prefill_chunk": "auto",
    }  # fmt: skip
    assert search_only == {}


def test_options_override_the_file_and_a_conflict_names_both(tmp_path: Path) -> None:
    setting = parse_setting("format: 1\nknobs: {cache_gb: 1, prefetch: stale_gate}", "a.yaml", tmp_path)
    assert setting.for_use({"cache_gb": 2.0}) == Knobs(cache_gb=2.0, prefetch="stale_gate")
    with pytest.raises(KnobError, match=r"sync_window=1 or prefetch=off \(the other knobs are those of a.yaml\)"):
        setting.for_use({"sync_window": 4})


def test_values_that_yaml_reads_otherwise(tmp_path: Path) -> None:
    text = "format: 1\nknobs: {cache_gb: 1e-2, prefetch: off, sync_window: auto}"
    assert parse_setting(text, "f", tmp_path).for_use() == Knobs(cache_gb=0.01, sync_window=-1)


def test_paths_start_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "plan.parquet").touch()
    setting = parse_setting("format: 1\nknobs: {cache_gb: 1, bits_plan: plan.parquet}", "f", tmp_path)
    assert setting.for_use().bits_plan == str(tmp_path / "plan.parquet")
    assert setting.find("~/models") == tmp_path / "home" / "models"
    assert setting.find("elsewhere") == Path("elsewhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"format: {FORMAT + 1}\nknobs: {{}}\nnew: 1", "has format 2, and this version reads up to 1; update headrace"),
        ("format: one\nknobs: {}", "has format='one', which does not exist"),
        ("knobs: {}", "it has no key format"),
        ("- 1", "is not a setting file"),
        ("", "is not a setting file"),
        ("{a: [", "is not valid YAML"),
        ("format: 1", "has no knobs"),
        ("format: 1\nknob: {}", "knob is not a key of a setting file; did you mean knobs?"),
        ("format: 1\n7: {}\nknobs: {}", "7 is not a key of a setting file"),
        ("format: 1\nknobs: 3", "knobs=3 is not a mapping"),
        ("format: 1\nknobs: {1: 2}", "knobs has the key 1, which is not text"),
        ("format: 1\nknobs: {cache_gbs: 2}", "cache_gbs is not a knob; did you mean cache_gb?"),
        ("format: 1\nknobs: {cache_gb: -2}", "cache_gb=-2 is out of range"),
        ("format: 1\nknobs: {cache_gb: .nan}", "cache_gb=nan is out of range"),
        ("format: 1\nknobs: {cache_gb: [1]}", "cache_gb=[1] is not a number"),
        ("format: 1\nknobs: {cache_gb: much}", "cache_gb='much' is not a number"),
        ("format: 1\nknobs: {read_threads: 2}", "has no effect while every expert is resident"),
        ("format: 1\nknobs: {cache_gb: 1, prefetch: previous_token}", "was removed"),
        ("format: 1\nknobs: {bits_by: layer}", "knob bits_by was removed: "),
        ("format: 1\nknobs: {cache_gb: 1, ssd_gbps: 1}", "move it to search_only"),
        ("format: 1\nknobs: {}\nsearch_only: {cache_gb: 1}", "move it to knobs"),
        ("format: 1\nknobs: {}\nmodel: {paths: x}", "model.paths is not a key; did you mean path?"),
        ("format: 1\nknobs: {}\nmodel: {path: [x]}", "model.path=['x'] is not text"),
        ("format: 1\nknobs: {}\nname: 3", "name=3 is not text"),
        ("format: 1\nknobs: {}\ntrial: true", "trial=True is not a whole number"),
        ("format: 1\nknobs: {}\nconfirmed: 1", "confirmed=1 is not true or false"),
        ("format: 1\nknobs: {}\nprotocol: {timed_token: 3}", "did you mean timed_tokens?"),
        ("format: 1\nknobs: {}\nmeasured: {speed: {value: 3}}", "measured.speed is not a figure"),
        ("format: 1\nknobs: {}\nmeasured: {decode_tok_s: 3}", "measured.decode_tok_s needs numbers"),
        ("format: 1\nknobs: {}\nmeasured: {decode_tok_s: {value: fast}}", "measured.decode_tok_s needs numbers"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(HeadraceError) as e:
        read_setting(file)
    assert message in str(e.value) and str(file) in str(e.value) and "\n" not in str(e.value)


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b"a" * 1_000_001)
    for name, message in (
        ("missing", "cannot be read (No such file"), ("binary", "is not a text file"), ("large", "is too large"),
        (".", "is a folder; give a setting file, or a study with --from"),
    ):  # fmt: skip
        with pytest.raises(HeadraceError) as e:
            read_setting(tmp_path / name)
        assert message in str(e.value) and "\n" not in str(e.value)
