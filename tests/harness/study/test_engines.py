"""Engine adapters: modules and commands that can measure, and one line for those that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import HeadraceError, Knobs
from harness import ConfigError
from harness.study.engines import CommandEngine, Footprint, engine_at, engine_from_config, no_footprint


def test_impossible_commands() -> None:
    with pytest.raises(ConfigError, match="cannot be split into words"):
        CommandEngine("measure 'me")
    with pytest.raises(ConfigError, match=r"engine\.command is empty"):
        CommandEngine(" ")
    with pytest.raises(HeadraceError, match="cannot be started"):
        CommandEngine("/nowhere/at/all").measure({})
    with pytest.raises(HeadraceError, match="size='x' is not part of a footprint"):
        CommandEngine("""echo '{"size": "x"}'""").footprint("c", Knobs())
    with pytest.raises(HeadraceError, match="one_token_gb=-1 is not part"):
        CommandEngine("""echo '{"one_token_gb": -1}'""").footprint("c", Knobs())
    with pytest.raises(HeadraceError, match=r"exit status 1: .*No such file"):
        CommandEngine("cat /nowhere/at/all").footprint("c", Knobs())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.at.all", "engine.module=nowhere.at.all cannot be imported"),
        ("math", "engine.module=math has no function load; see docs/own-engine.md"),
        ("math:nope", "engine.module=math:nope: math has no nope"),
        ("", "cannot be imported"),
    ],
)
def test_modules_that_are_no_engine(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_at(name)


def test_a_configuration_has_one_engine() -> None:
    assert isinstance(engine_from_config({"module": "engine", "command": "./measure"}), CommandEngine)
    assert engine_from_config({"module": "engine", "command": None}).footprint is not None
    with pytest.raises(ConfigError, match="are two engines; give one of them"):
        engine_from_config({"module": "mine", "command": "./measure"})


def test_an_empty_answer_ends_the_requests_for_footprints(tmp_path: Path) -> None:
    (tmp_path / "engine.sh").write_text(f"echo x >> '{tmp_path / 'calls'}'; echo '{{}}'\n")
    engine = CommandEngine(f"sh '{tmp_path / 'engine.sh'}'")
    for gb in (1.0, 2.0):
        assert engine.footprint("c", Knobs(cache_gb=gb)) == Footprint("unknown", no_footprint("c").fingerprint)
    assert (tmp_path / "calls").read_text().count("x") == 1
