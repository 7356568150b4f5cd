"""Command line of the benchmarks: every module is a sub-command with a help text."""

from __future__ import annotations

import pytest

from harness.bench.__main__ import MODULES, main


@pytest.mark.parametrize("name", [m.__name__.rpartition(".")[2] for m in MODULES])
def test_each_benchmark_has_a_help_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0 and f"harness.bench {name}" in capsys.readouterr().out
