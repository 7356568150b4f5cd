"""Settings of a study: what the rows say, for a recommendation, default, reference and any trial; and what cannot be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT

from engine.errors import KnobError
from engine.setting.setting_file import parse_setting
from harness import ResultsError
from harness.analysis.pareto import Analysis
from harness.best.figures import figures_of
from harness.best.settings import of_trial, picked, settings_of
from harness.decisions.recommend import Choice, named, recommended, rules_of, wishes_of
from harness.results.rows import frame, read_trials


def test_each_recommendation_has_the_values_of_its_rows(demo: Path, found: Analysis) -> None:
    choices = recommended(found, **wishes_of(demo))
    settings = settings_of(demo, found, choices)
    assert list(settings) == ["fastest_lossless", "fastest", "least_memory"]
    points = {name: point for name, point, _ in named(found, choices)}
    for choice in choices:
        setting = settings[choice.name]
        assert (setting.trial, setting.confirmed, setting.rule) == (choice.trial, choice.confirmed, choice.rule)
        assert setting.measured == figures_of(found, points[choice.name])
        row = found.df[found.df["trial"] == choice.trial].iloc[-1]
        assert setting.model["fingerprint"] == row["model_fingerprint"] and setting.machine["cpu"] == row["cpu"]
        assert setting.for_use().cache_gb == row["cache_gb"] and setting.search_only == {"ssd_gbps": 0.1}
        again = parse_setting(setting.to_yaml(), "it", demo / "best")
        assert replace(again, source=setting.source, place=setting.place) == setting
        assert again.find(again.eval_texts["file"]).resolve() == demo / "judge.yaml"
        assert f"--pick {choice.name}" in setting.commands["serve"]


def test_default_and_reference(demo: Path, found: Analysis) -> None:
    assert picked(demo, found, "default").trial == 1
    resident = picked(demo, found, "reference")
    assert resident.trial == 0 and resident.for_use().cache_gb is None and "--pick reference" in resident.commands["chat"]


def test_any_trial(demo: Path, found: Analysis) -> None:
    setting = of_trial(demo, found, 18)
    assert setting.title == "trial 18 of demo_ssd_0.1" and setting.confirmed is False
    assert setting.for_use(search=True) == parse_setting(setting.to_yaml(), "it", demo).for_use(search=True)
    assert "--trial 18" in setting.commands["measure"]


def test_what_cannot_be_had_is_one_line(demo: Path, found: Analysis) -> None:
    failed = int(found.df[found.df["status"] == "infeasible"]["trial"].iloc[0])
    for call, message in (
        (lambda: picked(demo, found, "fastes"), "fastes is not a recommended setting; did you mean fastest?"),
        (lambda: picked(demo, found, "fastest_in_memory"), "give its search recommend.memory_gb=GB"),
        (lambda: of_trial(demo, found, 99), "demo has no trial 99; its trials are 0 to 26"),
        (lambda: of_trial(demo, found, failed), f"trial {failed} of demo has no figures (infeasible: "),
        (lambda: picked(demo, Analysis(found.df[found.df["status"] != "ok"]), "fastest"), "demo has no measured setting"),
    ):
        with pytest.raises(ResultsError) as e:
            call()
        assert message in str(e.value) and "\n" not in str(e.value)


def test_a_setting_with_a_removed_knob_is_refused_by_its_reader(demo: Path, found: Analysis) -> None:
    rows = [
        {**row, "removed_knobs": "bits_by=layer gate_exponent=1"}
        for row in found.df[found.df["trial"] == 3].to_dict("records")
    ]
    setting = of_trial(demo, Analysis(frame(rows)), 3)
    assert setting.commands == {}
    with pytest.raises(KnobError, match="knob bits_by was removed: "):
        parse_setting(setting.to_yaml(), "it", demo)


def test_an_engine_of_another_maker_is_in_the_file(found: Analysis, tmp_path: Path) -> None:
    rows = [{**row, "engine": "./measure --fast"} for row in found.df.to_dict("records")]
    (setting,) = settings_of(tmp_path, Analysis(frame(rows)), [Choice("fastest", "the fastest", 3)]).values()
    assert setting.engine == {"command": "./measure --fast"} and setting.commands["run"].endswith("| ./measure --fast")
    assert setting.model == {"name": "kimi_mini", "fingerprint": "2-a7ceb54acf6423cb", "architecture": "kimi_k2"}


@pytest.mark.parametrize("name", ["demo_ssd_0.1", "demo_ssd_0.3"])
def test_published_setting_files_are_current(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = ROOT / "results" / "published" / name
    found = Analysis(read_trials(folder), **rules_of(folder))
    settings = settings_of(folder, found, recommended(found, **wishes_of(folder)))
    assert {p.stem: p.read_text() for p in (folder / "best").iterdir()} == {n: s.to_yaml() for n, s in settings.items()}


def test_a_chosen_chunk_is_a_fact_of_the_machine(demo: Path, found: Analysis) -> None:
    assert "prefill_chunk" not in of_trial(demo, found, 18).machine  # the trial's own knob
    rows = found.df.assign(prefill_chunk=0, prefill_chunk_used=2048)
    setting = of_trial(demo, Analysis(rows), 18)
    assert setting.knobs["prefill_chunk"] == "auto" and setting.machine["prefill_chunk"] == 2048
