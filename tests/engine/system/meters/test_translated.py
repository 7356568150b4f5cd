"""Rosetta: a translated process is refused in one line; every other one is not."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from engine.errors import HeadraceError
from engine.system.meters.translated import refuse_translated, translated


class FakeSysctl:
    def __init__(self, value: int | None) -> None:
        self.value = value

    def sysctlbyname(self, name: bytes, into: Any, size: Any, new: None, new_size: Any) -> int:
        assert name == b"sysctl.proc_translated" and size._obj.value == 4 and new is None and new_size.value == 0
        if self.value is None:
            return -1
        into._obj.value = self.value
        return 0


@pytest.mark.parametrize(("value", "answer"), [(0, False), (1, True), (None, None)])
def test_translated(value: int | None, answer: bool | None) -> None:
    assert translated(FakeSysctl(value)) is answer
    if not answer:
        refuse_translated(FakeSysctl(value))


def test_a_translated_process_is_refused_in_one_line() -> None:
    with pytest.raises(HeadraceError, match=r"sysctl\.proc_translated=1.*install an arm64 Python") as e:
        refuse_translated(FakeSysctl(1))
    assert "\n" not in str(e.value)


def test_other_systems_do_not_know_the_question() -> None:
    if sys.platform != "darwin":
        assert translated() is None
        refuse_translated()


def test_engine_search_and_load_refuse_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import engine.__main__
    import engine.engine
    import harness.search

    def refuse() -> None:
        refuse_translated(FakeSysctl(1))

    for module in (engine.__main__, engine.engine, harness.search):
        monkeypatch.setattr(module, "refuse_translated", refuse)
    with pytest.raises(HeadraceError, match="Rosetta"):
        engine.engine.load("/nowhere")
    for main in (engine.__main__.main, harness.search.main):
        assert main(["knobs"] if main is engine.__main__.main else ["study=demo"]) == 2
        assert "proc_translated=1" in capsys.readouterr().err
