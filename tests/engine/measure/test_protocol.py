"""Protocol: wrong values are refused, warm-up has the given length, and the page cache is prepared as given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import (
    HeadraceError,
    Judge,
    KnobError,
    Knobs,
    Protocol,
    footprint,
    load,
    prepare_page_cache,
)
from engine.__main__ import main
from engine.measure.judge import Text
from engine.system.page_cache import cached_share, weight_files

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge(
    (Text("a", "prose", TEXT, TEXT[:31]), Text("b", "prose", TEXT[::-1], TEXT[30:51]), Text("c", "x", "abc", "defgh"))
)


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


def test_warm_up_decodes_the_given_number_of_tokens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as engine:
        decode, decoded = engine.forward.decode, []
        monkeypatch.setattr(engine.forward, "decode", lambda *a: decoded.append(a[0]) or decode(*a))
        for tokens in (0, 8, 130):  # the three texts have 57 tokens to decode
            decoded.clear()
            engine.teacher_forced(JUDGE, Protocol(warm_up_tokens=tokens))
            assert len(decoded) == tokens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warm_up_tokens": -1}, "warm_up_tokens=-1 is not an integer of at least 0"),
        ({"timed_tokens": 0}, "timed_tokens=0 is not an integer of at least 1"),
        ({"timed_tokens": True}, "timed_tokens=True is not"),
        ({"page_cache": "hot"}, "page_cache='hot' is unknown; choose one of: as_is, cold, warm"),
        ({"state": "warm"}, "state='warm' is unknown; choose one of: prefilled, steady, cold"),
        ({"prefill": "half"}, "prefill='half' is unknown; choose one of: real, restored"),
        ({"score": 1}, "score=1 is neither"),
        ({"timed_token": 4}, "did you mean timed_tokens?"),
    ],
)
def test_wrong_protocols(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadraceError) as e:
        Protocol.from_mapping(values)
    assert message in str(e.value) and "\n" not in str(e.value)
    assert Protocol.from_mapping(Protocol(timed_tokens=3).as_dict()) == Protocol(timed_tokens=3)


def test_the_page_cache_is_dropped_and_filled(path: Path) -> None:
    files = weight_files(path)
    assert {file.suffix for file in files} == {".safetensors"}
    assert prepare_page_cache(path, "warm") == "read through"
    assert cached_share(files) == 1
    knobs = Knobs(cache_gb=footprint(path).one_token_gb)
    assert prepare_page_cache(path, "cold") == "posix_fadvise"
    assert cached_share(files) == 0
    with load(path, knobs) as engine:
        m = engine.measure(JUDGE, Protocol(timed_tokens=5))
    assert m.page_cached_before == 0 < m.page_cached_after
    assert prepare_page_cache(path, "as_is") == "as_is"


def test_impossible_page_cache_states_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KnobError, match="page_cache=warm has no effect with io_mode=direct"):
        prepare_page_cache(path, "warm", "direct")
    monkeypatch.setattr("engine.system.page_cache.drop_cache", lambda files: "posix_fadvise")  # as on a tmpfs
    prepare_page_cache(path, "warm")
    with pytest.raises(HeadraceError, match=r"page_cache=cold: .* \(100% of .* stay cached\)"):
        prepare_page_cache(path, "cold")
    monkeypatch.setattr("engine.system.page_cache.drop_cache", lambda files: "not possible")
    monkeypatch.setattr("engine.system.page_cache.cached_share", lambda files: None)
    with pytest.raises(HeadraceError, match="this system has no call for it"):
        prepare_page_cache(path, "cold")


def test_the_command_line_takes_a_protocol(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    command = ["measure", "--model", str(path), "--judge", str(tmp_path / "mine.txt"), "--page-cache"]
    assert main([*command, "cold", "--timed-tokens", "6", "--warm-up-tokens", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["decode_tokens"], result["page_cache_by"]) == (6, "posix_fadvise")
    asked = {"warm_up_tokens": 2, "timed_tokens": 6, "page_cache": "cold"}
    assert result["protocol"] == {**asked, "score": True, "prefill": "real", "state": "prefilled"}
    for wrong in (["lukewarm"], ["as_is", "--timed-tokens", "0"], ["warm", "--io-mode", "direct", "--cache-gb", "0.0005"]):
        assert main([*command, *wrong]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
