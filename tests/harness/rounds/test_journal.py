"""Journal: an entry has hypothesis, trials, results and verdict of its round, and is written once."""

from __future__ import annotations

import functools
from pathlib import Path

from synthetic import LEGAL, SPACE, frame, searched, streamed

from harness.analysis.findings import findings_of
from harness.results.metrics import OBJECTIVES
from harness.rounds.journal import NAME, append, entry
from harness.rounds.next_space import next_space
from harness.rounds.round import space_path
from harness.rounds.verdict import verdict
from harness.space.changes import applied
from harness.space.space import Space


@functools.cache
def entry_of_a_round() -> tuple[str, Space]:
    first = [{**r, "row_id": f"a{r['trial']}", "wall_s": 60.0} for r in searched(1, streamed)]
    changes = next_space(findings_of(frame(first), SPACE, OBJECTIVES), SPACE, LEGAL)
    space = applied(SPACE, changes)
    second = [{**r, "row_id": f"b{r['trial']}", "wall_s": 60.0} for r in searched(2, streamed, 30, 61, space)]
    second[3] |= {"origin": "random"}
    second[4] |= {"status": "oom", "status_reason": "9 GB", "decode_tok_s": None}
    second[5] |= {"origin": "sentinel", "run": 1, "drift": 0.93}
    before, after = frame(first), frame(first + second)
    reading = findings_of(after, space, OBJECTIVES)
    won = verdict(before, after)
    proposed = next_space(reading, space, LEGAL)
    command = f"python -m harness.search search_space={space_path(2)}"
    return entry(
        2, changes, space, before, after, OBJECTIVES, reading, won, proposed, command, ["proposer: exit status 1"]
    ), space  # fmt: skip


def test_an_entry_has_hypothesis_trials_results_and_verdict() -> None:
    text, _ = entry_of_a_round()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads[0] in ("## Round 2: kept", "## Round 2: discarded")
    assert heads[1:4] == ["### Hypothesis", "### Trials", "### Results"]
    assert heads[4:] == [heads[0].replace("## Round 2:", "### Verdict:"), "### Next hypothesis"]
    for part in (
        "- widen cache_gb: [0.005, 0.04] -> [0.005, 0.06]: ", "29 trials (28 ok, 1 oom); 1 sentinel. 30 runs in 0.50 h",
        "| `cache_gb` | 0.005 .. 0.06, log |", "    python -m harness.search search_space=rounds/02/space.yaml",
        "- front before: ", "- front after: ",
        "- drift: -7.0% against the median speed of the earlier runs, in 1 sentinel run",
        "random 1 of 1",
        "Importance of the knobs: ",
        "hypervolume of the front".capitalize(), "- proposer: exit status 1",
    ):  # fmt: skip
        assert part in text


def test_each_entry_is_written_once_and_no_entry_changes(tmp_path: Path) -> None:
    text, _ = entry_of_a_round()
    assert append(tmp_path, 1, "## Round 1: kept\n")
    one = (tmp_path / NAME).read_bytes()
    assert append(tmp_path, 2, text)
    both = (tmp_path / NAME).read_bytes()
    assert both.startswith(one)
    assert not append(tmp_path, 2, text)
    assert not append(tmp_path, 1, "## Round 1: kept\n")
    assert (tmp_path / NAME).read_bytes() == both
