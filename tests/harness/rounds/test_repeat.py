"""Repeat command: pasted into a shell, it composes the round's space and runs; it has no path of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from support import Cli

from harness.results.rows import read_trials
from harness.rounds import repeat
from harness.rounds.repeat import _corrections, _word
from harness.study.hydra.overrides import accepted, parsed

Paste = Callable[..., tuple[int, str, str]]
PROPOSER = (
    "import json, sys\n"
    "rows = json.load(sys.stdin)['rows']\n"
    "changes = [{'kind': 'fix', 'knob': 'read_threads', 'value': 7}, {'kind': 'narrow', 'knob': 'cache_gb', 'high': 0.03},\n"
    "           {'kind': 'fix', 'knob': 'sync_window', 'value': 4}]\n"
    "print(json.dumps({'changes': changes}))\n"
)


@pytest.fixture(autouse=True)
def _corrected(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture `cli` leaves the corrections out."""
    monkeypatch.setattr(repeat, "_corrections", _corrections)


@pytest.fixture
def paste(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Paste:
    """Let bash read lines, and run the command that it would start in this process: (exit status, stdout, stderr)."""
    from harness import search

    def run(lines: str, **variables: str) -> tuple[int, str, str]:
        words = subprocess.run(
            ["bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}\n{lines}"],
            capture_output=True, text=True, cwd=place, env={**os.environ, **variables}, timeout=20, check=True,
        ).stdout.split("\0")[:-1]  # fmt: skip
        assert words[:2] == ["-m", "harness.search"]
        monkeypatch.setattr(sys, "argv", ["search", *words[2:]])
        monkeypatch.setattr(search, "_status", 0)
        capsys.readouterr()
        status = search.main()
        return status, *capsys.readouterr()

    return run


def commands(journal: str) -> list[str]:
    found = re.findall(r"to repeat the round:\n\n((?:    .*\n)+)", journal)
    return [re.sub(r"^    ", "", text, flags=re.M).strip() for text in found]


def test_the_journals_command_repeats_the_round(session: Callable[..., pd.DataFrame], place: Path, paste: Paste) -> None:
    (place / "propose.py").write_text(PROPOSER)
    about, bounds = "R (4bit) = 50 %, 'é'", "[peak_memory_gb <= 80, perplexity <= 9 * reference]"
    session(
        "rounds=2", "budget.trials=4", "proposer.every=1", f"proposer.command='{sys.executable} {place / 'propose.py'}'",
        f"study.about={about}", f"constraints={bounds}", "search_space.evict_half_life=7", "knobs.prefill_chunk=256",
        "study.anchors=[{cache_gb: 0.04}]",
    )  # fmt: skip
    folder = place / "results" / "demo"
    journal = (folder / "journal.md").read_text()
    assert str(place) not in journal and str(Path.home()) not in journal and "cp " not in journal
    lines = commands(journal)
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        status, out, err = paste(f"{line} --cfg job", PROPOSER_COMMAND="python propose.py")
        assert (status, err) == (0, "")
        config = yaml.safe_load(out)
        assert config["search_space"] == yaml.safe_load((folder / "rounds" / f"{number:02d}" / "space.yaml").read_text())
        assert config["study"]["name"] == f"demo_round_{number:02d}" and config["study"]["about"] == about
        assert config["constraints"] == ["peak_memory_gb <= 80", "perplexity <= 9 * reference"]
        assert config["knobs"] == {"prefill_chunk": 256} and config["rounds"] == 1
        assert config["study"]["anchors"] == ([{"cache_gb": 0.04}] if number == 1 else [])
        assert config["results_dir"] == "./results"
    assert config["search_space"]["read_threads"] == 7 and config["search_space"]["cache_gb"]["high"] == 0.03
    status, _, err = paste(f"{lines[1]} proposer.command=null budget.trials=2", PROPOSER_COMMAND="x")
    assert (status, err) == (0, "")
    manifest = json.loads((place / "results" / "demo_round_02" / "manifest.json").read_text())
    assert "search_space=./results/demo/rounds/02/space.yaml" in manifest["command"]
    df = read_trials(place / "results" / "demo_round_02")
    assert (df[df["trial"] > 0]["read_threads"] == 7).all() and (df["cache_gb"].dropna() <= 0.03).all()


def test_a_study_file_that_changes_its_space(session: Callable[..., pd.DataFrame], place: Path, paste: Paste) -> None:
    (place / "propose.py").write_text(PROPOSER)
    (place / "mine" / "study").mkdir(parents=True)
    (place / "mine" / "study" / "own.yaml").write_text(
        "# @package _global_\ndefaults: [demo, _self_]\nstudy: {name: own}\nsearch_space: {cache_gb: {high: 0.02},"
        " read_threads: {low: 2, high: 9}, sync_window: {type: ordinal, values: [1, 4]},"
        " prefill_chunk: {type: int, low: 64, high: 512, when: {sync_window: 1}}}\n"
    )
    session(
        "study=own", "--config-dir", "mine", "rounds=2", "budget.trials=4", "proposer.every=1",
        f"proposer.command='{sys.executable} {place / 'propose.py'}'", rows=False,
    )  # fmt: skip
    folder = place / "results" / "own"
    for number, line in enumerate(commands((folder / "journal.md").read_text()), 1):
        status, out, err = paste(f"{line} --cfg job", PROPOSER_COMMAND="python propose.py")
        assert (status, err) == (0, "")
        wanted = yaml.safe_load((folder / "rounds" / f"{number:02d}" / "space.yaml").read_text())
        assert yaml.safe_load(out)["search_space"] == wanted and wanted["cache_gb"]["high"] == 0.02
    assert wanted["read_threads"] == 7 and "prefill_chunk" not in wanted and "~search_space.prefill_chunk" in line


@pytest.mark.parametrize(
    ("token", "word", "value"),
    [
        ("model.path=HOME/models/K (4bit)", "'model.path=~/models/K (4bit)'", "~/models/K (4bit)"),
        ('model.path="HOME/K, 2"', "'model.path=\"~/K, 2\"'", "~/K, 2"),
        ("model.path=CWD/x=9", "model.path=./x=9", "./x=9"),
        ("results_dir=CWD", "results_dir=.", "."),
        ("engine.command=sh HOME/e --a=b", "'engine.command=sh '\"$HOME\"'/e --a=b'", "sh HOME/e --a=b"),
        ("engine.command=CWD/e.sh", "engine.command=./e.sh", "./e.sh"),
        ("engine.command=my engine -x", "'engine.command=my engine -x'", "my engine -x"),
        ("model.path=/mnt/Big SSD/x", '"model.path=$MODEL_PATH"', "/mnt/Big SSD/x"),
        ("proposer.command=python --to=/mnt/y", '"proposer.command=$PROPOSER_COMMAND"', "/mnt/Big SSD/x"),
        ("storage.url=postgresql://u:secret@h/d", '"storage.url=$STORAGE_URL"', "/mnt/Big SSD/x"),
    ],
)
def test_paths_of_the_machine_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str, word: str, value: str
) -> None:
    home, cwd = str(tmp_path / "home"), str(tmp_path / "home" / "here")
    Path(cwd).mkdir(parents=True)
    monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(cwd)
    variables: dict[str, str] = {}
    (given,) = accepted([token.replace("HOME", home).replace("CWD", cwd)])
    shown = _word(given, variables)
    assert shown == word
    env = {**os.environ, **dict.fromkeys(variables, "/mnt/Big SSD/x")}
    typed = subprocess.run(["bash", "-c", f"printf '%s' {shown}"], capture_output=True, text=True, cwd=cwd, env=env).stdout
    override = parsed(accepted([typed])[0])
    assert override is not None and override.value() == value.replace("HOME", home)
